// This file is responsible for the reference model: what Alloy's label
// pipeline makes of a push, following WIRE.md 2.1-2.4, 2.6 and 3.6 word by
// word, with maps and no concern for speed. It is an oracle for generated
// inputs, so it shares no code with what it judges.
package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	nameLabel    = "__name__"
	serviceLabel = "service_name"
	appLabel     = "app_name"
	deltaLabel   = "__delta__"
)

// Kinds of failure, in `kind` of an answer. Alloy's texts differ; the tests
// compare kinds.
const (
	kindNameRequired  = "name_required"  // 2.1: no app name
	kindNameInvalid   = "name_invalid"   // 2.1: a character in the app name
	kindLabelRequired = "label_required" // 2.1: an empty key
	kindLabelInvalid  = "label_invalid"  // 2.1 and 2.4: a character in a label name
	kindNoLabels      = "no_labels"      // 2.4: nothing left to send
	kindEmptyName     = "empty_name"     // 2.4: a label with an empty name
	kindValueInvalid  = "value_invalid"  // 2.4: a value that is not UTF-8
)

type externalLabels map[string]string

// referenceRequest is one input line; op says which fields count.
type referenceRequest struct {
	Op       string         `json:"op"`     // push, ingest or name
	Series   []series       `json:"series"` // push
	Query    *rawBytes      `json:"query"`  // ingest: the raw query, without '?'
	Name     *rawBytes      `json:"name"`   // name: percent-decoded
	External externalLabels `json:"external"`
}

// expectedPush is the answer to op push: what a destination receives, in
// order, and which series are refused.
type expectedPush struct {
	OK      bool            `json:"ok"` // nothing refused; otherwise Alloy answers internal
	Series  []forwarded     `json:"series"`
	Refused []refusedSeries `json:"refused"`
}

type forwarded struct {
	Index int `json:"index"` // of the series in the request
	series
}

type refusedSeries struct {
	Index int    `json:"index"`
	Kind  string `json:"kind"`
}

// expectedIngest is the answer to op ingest.
type expectedIngest struct {
	OK    bool    `json:"ok"`
	Kind  string  `json:"kind,omitempty"`  // why nothing is sent; Alloy answers 500, pyrotee 400
	Name  string  `json:"name,omitempty"`  // the `name` a destination gets, decoded
	Query string  `json:"query,omitempty"` // the whole query a destination gets
	Label []label `json:"labels,omitempty"`
}

// expectedName is the answer to op name: the parser of 2.1 and the form of 2.2 alone.
type expectedName struct {
	OK         bool    `json:"ok"`
	Kind       string  `json:"kind,omitempty"`
	Labels     []label `json:"labels,omitempty"` // sorted, with __name__ and with empty values
	Normalised string  `json:"normalised,omitempty"`
}

func referenceCommand(ctx context.Context, args []string, stdin io.Reader, out *lines) error {
	if err := parseFlags(newFlags("reference"), args, false); err != nil {
		return err
	}
	return eachLine(ctx, stdin, out, func(line []byte) any {
		var request referenceRequest
		if err := json.Unmarshal(line, &request); err != nil {
			return inputError{err.Error()}
		}
		switch {
		case request.Op == "push":
			return referencePush(request.Series, request.External)
		case request.Op == "ingest" && request.Query != nil:
			return referenceIngest(string(*request.Query), request.External)
		case request.Op == "name" && request.Name != nil:
			return referenceName(string(*request.Name))
		}
		return inputError{"op wants push with series, ingest with query, or name with name"}
	})
}

// referencePush follows WIRE.md 3.6: the series one by one, a failing one does
// not stop the others.
func referencePush(pushed []series, external externalLabels) expectedPush {
	expected := expectedPush{OK: true, Series: []forwarded{}, Refused: []refusedSeries{}}
	for i, one := range pushed {
		labels := map[string]string{}
		for _, l := range one.Labels {
			set(labels, l[0], l[1]) // 3.6: duplicates: last wins; an empty value deletes
		}
		ensureServiceName(labels)
		kind := validate(labels)
		if kind != "" {
			expected.OK = false
			expected.Refused = append(expected.Refused, refusedSeries{i, kind})
			continue
		}
		maps.DeleteFunc(labels, func(name, _ string) bool { // 2.4 step 3
			return strings.HasPrefix(name, "__") && name != nameLabel && name != deltaLabel
		})
		override(labels, external)
		samples := one.Samples
		if samples == nil {
			samples = []sample{}
		}
		expected.Series = append(expected.Series, forwarded{i, series{Labels: list(labels), Samples: samples}})
	}
	return expected
}

// referenceIngest follows WIRE.md 1.6 with one writer.
func referenceIngest(rawQuery string, external externalLabels) expectedIngest {
	// A parse error means that some pairs were dropped, which is what Alloy ignores too.
	query, _ := url.ParseQuery(rawQuery)
	labels := map[string]string{}
	kind := kindNameRequired
	if name := query.Get("name"); name != "" {
		labels, kind = parseName(name)
	}
	if kind != "" {
		return expectedIngest{Kind: kind}
	}
	ensureServiceName(labels)
	maps.DeleteFunc(labels, func(_, value string) bool { return value == "" })
	if service := labels[serviceLabel]; service != "" { // 2.4 step 1
		labels[nameLabel] = service
	}
	if kind := validate(labels); kind != "" {
		return expectedIngest{Kind: kind}
	}
	override(labels, external)
	name := normalise(labels)
	query.Set("name", name)
	return expectedIngest{OK: true, Name: name, Query: query.Encode(), Label: list(labels)}
}

func referenceName(name string) expectedName {
	labels, kind := parseName(name)
	if kind != "" {
		return expectedName{Kind: kind}
	}
	return expectedName{OK: true, Labels: list(labels), Normalised: normalise(labels)}
}

// parseName follows WIRE.md 2.1. The runes of a Go string are the characters
// of that section: each byte that is not UTF-8 becomes one U+FFFD.
func parseName(text string) (map[string]string, string) {
	head, rest := cutRunes([]rune(text), '{')
	app := strings.TrimSpace(string(head))
	if app == "" {
		return nil, kindNameRequired
	}
	if !onlyNameRunes(app, "_.-/") {
		return nil, kindNameInvalid
	}
	labels := map[string]string{nameLabel: app}
	var key []rune // grows over pieces without '=', so that "a,b=1" has the key "a,b"
	for {
		end := slices.IndexFunc(rest, func(r rune) bool { return r == '=' || r == '}' })
		if end < 0 || rest[end] == '}' {
			return labels, ""
		}
		key = append(key, rest[:end]...)
		rest = rest[end+1:]
		end = slices.IndexFunc(rest, func(r rune) bool { return r == ',' || r == '}' })
		if end < 0 {
			return labels, "" // the last pair is not closed and does not count
		}
		name := strings.TrimSpace(string(key))
		if name != nameLabel {
			if name == "" {
				return nil, kindLabelRequired
			}
			if !onlyNameRunes(name, "_.") {
				return nil, kindLabelInvalid
			}
		}
		labels[name] = strings.TrimSpace(string(rest[:end]))
		key, rest = nil, rest[end+1:]
	}
}

func cutRunes(text []rune, at rune) (before, after []rune) {
	if i := slices.Index(text, at); i >= 0 {
		return text[:i], text[i+1:]
	}
	return text, nil
}

func onlyNameRunes(text, punctuation string) bool {
	for _, r := range text {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && !strings.ContainsRune(punctuation, r) {
			return false
		}
	}
	return true
}

// ensureServiceName is WIRE.md 2.3. A label with an empty value counts as
// present here; on Push there is none, because set has deleted it.
func ensureServiceName(labels map[string]string) {
	if _, present := labels[serviceLabel]; present {
		set(labels, appLabel, labels[nameLabel])
	} else {
		set(labels, serviceLabel, labels[nameLabel])
	}
}

// validate is WIRE.md 2.4: "" or the kind of failure. Names are visited in
// order, so that the first failure is the same on every run.
func validate(labels map[string]string) string {
	if len(labels) == 0 {
		return kindNoLabels
	}
	for _, l := range list(labels) {
		switch {
		case !utf8.ValidString(l[1]):
			return kindValueInvalid
		case l[0] == "":
			return kindEmptyName
		case l[0] != nameLabel && !onlyNameRunes(l[0], "_."):
			return kindLabelInvalid
		}
	}
	return ""
}

func override(labels map[string]string, external externalLabels) {
	for name, value := range external {
		set(labels, name, value)
	}
}

func set(labels map[string]string, name, value string) {
	if value == "" {
		delete(labels, name)
	} else {
		labels[name] = value
	}
}

// normalise is WIRE.md 2.2.
func normalise(labels map[string]string) string {
	pairs := []string{}
	for _, l := range list(labels) {
		if l[0] != nameLabel {
			pairs = append(pairs, l[0]+"="+l[1])
		}
	}
	return fmt.Sprintf("%s{%s}", labels[nameLabel], strings.Join(pairs, ","))
}

// list is the labels sorted bytewise by name.
func list(labels map[string]string) []label {
	listed := make([]label, 0, len(labels))
	for name, value := range labels {
		listed = append(listed, label{name, value})
	}
	slices.SortFunc(listed, func(a, b label) int { return cmp.Compare(a[0], b[0]) })
	return listed
}

// rawBytes is a JSON string, or {"hex":"..."} for bytes that JSON cannot hold.
type rawBytes string

func (b *rawBytes) UnmarshalJSON(text []byte) error {
	var plain string
	if json.Unmarshal(text, &plain) == nil {
		*b = rawBytes(plain)
		return nil
	}
	var encoded struct {
		Hex *string `json:"hex"`
	}
	if err := json.Unmarshal(text, &encoded); err != nil || encoded.Hex == nil {
		return errors.New(`wants a string or {"hex":"..."}`)
	}
	decoded, err := hex.DecodeString(*encoded.Hex)
	*b = rawBytes(decoded)
	return err
}
