// This file is responsible for what the client sends: one table of named
// cases, each the same bytes on every run and every machine. How a case is
// sent and what came back is in client.go.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"

	pushv1 "github.com/grafana/pyroscope/api/gen/proto/go/push/v1"
	typesv1 "github.com/grafana/pyroscope/api/gen/proto/go/types/v1"
)

// wireKind names a protocol and a codec of the Connect family.
type wireKind string

const (
	wireConnect     wireKind = "connect"
	wireConnectJSON wireKind = "connect-json"
	wireGRPCWeb     wireKind = "grpc-web"
	wireGRPCWebJSON wireKind = "grpc-web-json"
	wireGRPC        wireKind = "grpc" // over HTTP/2: with prior knowledge (h2c) in cleartext, by ALPN in TLS
	wireGRPCJSON    wireKind = "grpc-json"
)

var wireKinds = []wireKind{wireConnect, wireConnectJSON, wireGRPCWeb, wireGRPCWebJSON, wireGRPC, wireGRPCJSON}

// cut says when the client gives up on its own call.
type cut int

const (
	cutNever   cut = iota
	cutTimeout     // the context carries a deadline, which travels as Connect-Timeout-Ms or Grpc-Timeout
	cutWritten     // cancel once the whole request is on the socket
	cutMidBody     // cancel after half of the body was handed to the socket
)

type clientCase struct {
	name   string
	about  string
	wire   wireKind
	gzip   bool
	cut    cut
	series func() []*pushv1.RawProfileSeries // nil: read from standard input
}

var clientCases = []clientCase{
	{name: "connect-proto", about: "Connect unary, protobuf", wire: wireConnect, series: oneSeries},
	{name: "connect-json", about: "Connect unary, JSON", wire: wireConnectJSON, series: oneSeries},
	{name: "connect-gzip", about: "Connect unary, protobuf, gzip request", wire: wireConnect, gzip: true, series: oneSeries},
	{name: "connect-json-gzip", about: "Connect unary, JSON, gzip request", wire: wireConnectJSON, gzip: true, series: oneSeries},
	{name: "grpc-web", about: "gRPC-Web, protobuf", wire: wireGRPCWeb, series: oneSeries},
	{name: "grpc-web-gzip", about: "gRPC-Web, protobuf, compressed frame", wire: wireGRPCWeb, gzip: true, series: oneSeries},
	{name: "grpc-web-json", about: "gRPC-Web, JSON", wire: wireGRPCWebJSON, series: oneSeries},
	{name: "grpc-h2c", about: "gRPC over h2c; fails where h2c is off", wire: wireGRPC, series: oneSeries},
	{name: "timeout", about: "the call carries --timeout as its deadline", wire: wireConnect, cut: cutTimeout, series: oneSeries},
	{name: "timeout-grpc-web", about: "the same over gRPC-Web", wire: wireGRPCWeb, cut: cutTimeout, series: oneSeries},
	{name: "cancel", about: "cancelled when the request is fully written", wire: wireConnect, cut: cutWritten, series: oneSeries},
	{name: "cancel-mid-body", about: "cancelled with half of an 8 MiB profile written", wire: wireConnect, cut: cutMidBody, series: bigProfile},
	{name: "empty", about: "no series at all", wire: wireConnect, series: noSeries},
	{name: "empty-json", about: "no series at all, as {}", wire: wireConnectJSON, series: noSeries},
	{name: "several-series", about: "three series with one, two and no samples", wire: wireConnect, series: severalSeries},
	{name: "unicode-labels", about: "values beyond ASCII, also NUL, quotes and separators", wire: wireConnect, series: unicodeLabels},
	{name: "series-200", about: "two hundred series", wire: wireConnect, series: manySeries},
	{name: "big-profile", about: "one profile of 8 MiB that does not compress", wire: wireConnect, series: bigProfile},
	{name: "invalid-label-name", about: "a label name with a dash", wire: wireConnect, series: invalidLabelName},
	{name: "mixed-label-names", about: "good, invalid, good", wire: wireConnect, series: mixedLabelNames},
	{name: "no-labels", about: "a series without labels", wire: wireConnect, series: noLabels},
	{name: "double-underscore", about: "names that start with two underscores", wire: wireConnect, series: doubleUnderscore},
	{name: "duplicate-labels", about: "repeated names, later empty values", wire: wireConnect, series: duplicateLabels},
	{name: "service-name", about: "the service_name rules, one series each", wire: wireConnect, series: serviceNames},
	{name: "annotations", about: "annotations, which are not forwarded", wire: wireConnect, series: annotations},
	{name: "stdin", about: `one line {"series":[...]} on standard input`, wire: wireConnect},
}

func findCase(name string) (clientCase, bool) {
	for _, c := range clientCases {
		if c.name == name {
			return c, true
		}
	}
	return clientCase{}, false
}

const (
	smallProfileBytes = 1 << 10
	bigProfileBytes   = 8 << 20
	manySeriesCount   = 200
)

func noSeries() []*pushv1.RawProfileSeries { return nil }

func oneSeries() []*pushv1.RawProfileSeries {
	return []*pushv1.RawProfileSeries{
		withSample("one", label{"__name__", "process_cpu"}, label{"service_name", "interop"}, label{"env", "prod"}),
	}
}

func severalSeries() []*pushv1.RawProfileSeries {
	first := withSample("several-0", label{"__name__", "process_cpu"}, label{"zone", "b"}, label{"env", "prod"})
	second := withSample("several-1", label{"__name__", "memory"}, label{"service_name", "interop"})
	second.Samples = append(second.Samples, repetitiveSample("several-1-b", 4*smallProfileBytes))
	third := &pushv1.RawProfileSeries{Labels: labelPairs(label{"service_name", "without-samples"})}
	return []*pushv1.RawProfileSeries{first, second, third}
}

func unicodeLabels() []*pushv1.RawProfileSeries {
	return []*pushv1.RawProfileSeries{withSample("unicode",
		label{"service_name", "λ-служба-服务"},
		label{"emoji", "🔥🦀"},
		label{"combining", "e\u0301 is not \u00e9"},
		label{"direction", "\u202eright to left\u202c"},
		label{"controls", "nul\x00 tab\t line\n"},
		label{"separators", `a=b,c}d{"quoted" \ <&>`},
		label{"spaces", "  kept around  "},
		label{"last", "\U0010ffff"},
	)}
}

func manySeries() []*pushv1.RawProfileSeries {
	many := make([]*pushv1.RawProfileSeries, 0, manySeriesCount)
	for i := range manySeriesCount {
		many = append(many, withSample(fmt.Sprintf("many-%d", i),
			label{"service_name", fmt.Sprintf("service-%03d", i)},
			label{"__name__", "process_cpu"},
			label{"index", fmt.Sprint(i)},
		))
	}
	return many
}

func bigProfile() []*pushv1.RawProfileSeries {
	return []*pushv1.RawProfileSeries{{
		Labels:  labelPairs(label{"service_name", "big"}),
		Samples: []*pushv1.RawSample{randomSample("big", bigProfileBytes)},
	}}
}

func invalidLabelName() []*pushv1.RawProfileSeries {
	return []*pushv1.RawProfileSeries{withSample("invalid", label{"service_name", "interop"}, label{"a-b", "1"})}
}

func mixedLabelNames() []*pushv1.RawProfileSeries {
	return []*pushv1.RawProfileSeries{
		withSample("mixed-0", label{"service_name", "good-first"}),
		withSample("mixed-1", label{"service_name", "bad"}, label{"a-b", "1"}),
		withSample("mixed-2", label{"service_name", "good-last"}),
	}
}

func noLabels() []*pushv1.RawProfileSeries {
	return []*pushv1.RawProfileSeries{withSample("no-labels")}
}

func doubleUnderscore() []*pushv1.RawProfileSeries {
	return []*pushv1.RawProfileSeries{
		withSample("dunder-0", label{"__name__", "process_cpu"}, label{"__delta__", "false"},
			label{"__session_id__", "abc"}, label{"__meta_x", "1"}, label{"service_name", "interop"}),
		withSample("dunder-1", label{"__a-b__", "invalid before the filter"}, label{"service_name", "interop"}),
	}
}

func duplicateLabels() []*pushv1.RawProfileSeries {
	return []*pushv1.RawProfileSeries{
		withSample("duplicate-0", label{"service_name", "interop"}, label{"a", "1"}, label{"a", "2"}),
		withSample("duplicate-1", label{"service_name", "interop"}, label{"a", "1"}, label{"a", ""}),
		withSample("duplicate-2", label{"service_name", "interop"}, label{"a", ""}, label{"a", "1"}),
	}
}

func serviceNames() []*pushv1.RawProfileSeries {
	return []*pushv1.RawProfileSeries{
		withSample("service-0", label{"__name__", "process_cpu"}, label{"env", "absent"}),
		withSample("service-1", label{"__name__", "process_cpu"}, label{"service_name", "present"}),
		withSample("service-2", label{"__name__", "process_cpu"}, label{"service_name", "present"}, label{"app_name", "mine"}),
		withSample("service-3", label{"service_name", "no-name"}, label{"app_name", "mine"}),
		withSample("service-4", label{"env", "neither"}),
		withSample("service-5", label{"__name__", "process_cpu"}, label{"service_name", ""}, label{"app_name", "mine"}),
	}
}

func annotations() []*pushv1.RawProfileSeries {
	one := withSample("annotations", label{"service_name", "interop"})
	one.Annotations = []*typesv1.ProfileAnnotation{{Key: "k", Value: "v"}, {Key: "k2"}}
	return []*pushv1.RawProfileSeries{one}
}

func withSample(seed string, labels ...label) *pushv1.RawProfileSeries {
	return &pushv1.RawProfileSeries{
		Labels:  labelPairs(labels...),
		Samples: []*pushv1.RawSample{randomSample(seed, smallProfileBytes)},
	}
}

// randomSample does not compress; the seed decides its bytes and its ID.
func randomSample(seed string, size int) *pushv1.RawSample {
	profile := make([]byte, size)
	if _, err := rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(profile); err != nil {
		panic("ChaCha8 never fails to read: " + err.Error())
	}
	return &pushv1.RawSample{ID: sampleID(seed), RawProfile: profile}
}

// repetitiveSample compresses well.
func repetitiveSample(seed string, size int) *pushv1.RawSample {
	pattern := []byte(seed)
	return &pushv1.RawSample{ID: sampleID(seed), RawProfile: bytes.Repeat(pattern, size/len(pattern)+1)[:size]}
}

// sampleID has the form of a UUID (8-4-4-4-12 hexadecimal digits).
func sampleID(seed string) string {
	sum := sha256.Sum256([]byte("id " + seed))
	digits := hex.EncodeToString(sum[:16])
	return digits[:8] + "-" + digits[8:12] + "-" + digits[12:16] + "-" + digits[16:20] + "-" + digits[20:]
}
