// This file is responsible for the one description of pushed series that the
// client, the server and the reference model share, and for turning it into
// and out of the protobuf types. Two descriptions are equal exactly when the
// labels, their order, the IDs and the profile bytes are equal.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	pushv1 "github.com/grafana/pyroscope/api/gen/proto/go/push/v1"
	typesv1 "github.com/grafana/pyroscope/api/gen/proto/go/types/v1"
)

// label is a name and a value; in JSON the array ["name","value"].
type label [2]string

// series describes one RawProfileSeries, labels and samples in wire order.
type series struct {
	Labels      []label  `json:"labels"`
	Samples     []sample `json:"samples"`
	Annotations int      `json:"annotations"` // how many; Alloy forwards none
}

// sample describes one RawSample without carrying its bytes.
type sample struct {
	ID     string `json:"id"`
	Size   int    `json:"size"` // bytes of raw_profile
	SHA256 string `json:"sha256"`
}

func describe(pushed []*pushv1.RawProfileSeries) []series {
	described := make([]series, 0, len(pushed))
	for _, one := range pushed {
		s := series{
			Labels:      make([]label, 0, len(one.GetLabels())),
			Samples:     make([]sample, 0, len(one.GetSamples())),
			Annotations: len(one.GetAnnotations()),
		}
		for _, pair := range one.GetLabels() {
			s.Labels = append(s.Labels, label{pair.GetName(), pair.GetValue()})
		}
		for _, raw := range one.GetSamples() {
			s.Samples = append(s.Samples, sample{
				ID:     raw.GetID(),
				Size:   len(raw.GetRawProfile()),
				SHA256: sha256Hex(raw.GetRawProfile()),
			})
		}
		described = append(described, s)
	}
	return described
}

// sorted says whether label names ascend strictly, bytewise (WIRE.md 2.4 step 5).
func sorted(labels []label) bool {
	for i := 1; i < len(labels); i++ {
		if labels[i-1][0] >= labels[i][0] {
			return false
		}
	}
	return true
}

// digest is one hash over a whole description.
func digest(described []series) string {
	text, err := json.Marshal(described)
	if err != nil {
		panic("strings and numbers always marshal: " + err.Error())
	}
	return sha256Hex(text)
}

func sha256Hex(bytes []byte) string {
	sum := sha256.Sum256(bytes)
	return hex.EncodeToString(sum[:])
}

// givenSeries is a series as a test writes it for `client --case stdin`: with
// the profile bytes (base64 in JSON) in place of their hash.
type givenSeries struct {
	Labels  []label `json:"labels"`
	Samples []struct {
		ID         string `json:"id"`
		RawProfile []byte `json:"raw_profile"`
	} `json:"samples"`
	Annotations []label `json:"annotations"`
}

func (g givenSeries) proto() *pushv1.RawProfileSeries {
	one := &pushv1.RawProfileSeries{Labels: labelPairs(g.Labels...)}
	for _, given := range g.Samples {
		one.Samples = append(one.Samples, &pushv1.RawSample{ID: given.ID, RawProfile: given.RawProfile})
	}
	for _, pair := range g.Annotations {
		one.Annotations = append(one.Annotations, &typesv1.ProfileAnnotation{Key: pair[0], Value: pair[1]})
	}
	return one
}

func labelPairs(labels ...label) []*typesv1.LabelPair {
	pairs := make([]*typesv1.LabelPair, 0, len(labels))
	for _, l := range labels {
		pairs = append(pairs, &typesv1.LabelPair{Name: l[0], Value: l[1]})
	}
	return pairs
}
