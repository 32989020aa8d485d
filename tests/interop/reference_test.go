// This file is responsible for the reference model: the vectors of WIRE.md 2.5
// and 2.6 by number, the rules of 2.3 and 2.4 one by one, and the real parser
// of the Pyroscope API module against ours on generated names.
package main

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/grafana/pyroscope/api/model/labelset"
)

// TestNameVectors has the rows of WIRE.md 2.5. An empty `sent` is an error of
// the given kind.
func TestNameVectors(t *testing.T) {
	for _, test := range []struct {
		row              string
		input, sent, err string
	}{
		{"1", "foo", "foo{service_name=foo}", ""},
		{"2", "foo{}", "foo{service_name=foo}", ""},
		{"3", "foo{", "foo{service_name=foo}", ""},
		{"4", "foo{}}", "foo{service_name=foo}", ""},
		{"5", "foo{bar=1,baz=2}", "foo{bar=1,baz=2,service_name=foo}", ""},
		{"6", "foo{baz=1,bar=2}", "foo{bar=2,baz=1,service_name=foo}", ""},
		{"7", " foo { bar = 1 , baz = 2 } ", "foo{bar=1,baz=2,service_name=foo}", ""},
		{"8", "my.awesome.app.cpu{env=staging,region=us-west-1}",
			"my.awesome.app.cpu{env=staging,region=us-west-1,service_name=my.awesome.app.cpu}", ""},
		{"9", "app/sub-1.2_x{}", "app/sub-1.2_x{service_name=app/sub-1.2_x}", ""},
		{"10", "a-b{}", "a-b{service_name=a-b}", ""},
		{"11", "9app{}", "9app{service_name=9app}", ""},
		{"12", "", "", kindNameRequired},
		{"13", "{}", "", kindNameRequired},
		{"14", "{a=1}", "", kindNameRequired},
		{"15", "   {a=1}", "", kindNameRequired},
		{"16", "foo bar{}", "", kindNameInvalid},
		{"17", "foo:bar{}", "", kindNameInvalid},
		{"18", "foo,bar", "", kindNameInvalid},
		{"19", "foo=bar", "", kindNameInvalid},
		{"20", "foo}{}", "", kindNameInvalid},
		{"21", "föö{}", "", kindNameInvalid},
		{"22", "foo\tbar", "", kindNameInvalid},
		{"23", "\tfoo\n{a=1}", "foo{a=1,service_name=foo}", ""},
		{"24", "foo{a=1,b=2", "foo{a=1,service_name=foo}", ""},
		{"25", "foo{a=1", "foo{service_name=foo}", ""},
		{"26", "foo{a", "foo{service_name=foo}", ""},
		{"27", "foo{a}", "foo{service_name=foo}", ""},
		{"28", "foo{a,b=1}", "", kindLabelInvalid},
		{"29", "foo{a=x,y}", "foo{a=x,service_name=foo}", ""},
		{"30", "foo{a=x,y,b=1}", "", kindLabelInvalid},
		{"31", "foo{=1}", "", kindLabelRequired},
		{"32", "foo{ =1}", "", kindLabelRequired},
		{"33", "foo{a=}", "foo{service_name=foo}", ""},
		{"34", "foo{a=,b=2}", "foo{b=2,service_name=foo}", ""},
		{"35", "foo{,a=1}", "", kindLabelInvalid},
		{"36", "foo{a=1,}", "foo{a=1,service_name=foo}", ""},
		{"37", "foo{a=1,,b=2}", "", kindLabelInvalid},
		{"38", "foo{a=1}b=2}", "foo{a=1,b=2,service_name=foo}", ""},
		{"39", "foo{a=1},b=2}", "", kindLabelInvalid},
		{"40", "foo{a=1}{b=2}", "", kindLabelInvalid},
		{"41", "foo{a=1}bar", "foo{a=1,service_name=foo}", ""},
		{"42", "foo{}a=1}", "foo{service_name=foo}", ""},
		{"43", "foo{a=b=c}", "foo{a=b=c,service_name=foo}", ""},
		{"44", "foo{a={}", "foo{a={,service_name=foo}", ""},
		{"45", "foo{a={x,b=2}", "foo{a={x,b=2,service_name=foo}", ""},
		{"46", "foo{a=1,a=2}", "foo{a=2,service_name=foo}", ""},
		{"47", "foo{a=1,a=}", "foo{service_name=foo}", ""},
		{"48", "foo{a-b=1}", "", kindLabelInvalid},
		{"49", "foo{a/b=1}", "", kindLabelInvalid},
		{"50", "foo{a.b=1}", "foo{a.b=1,service_name=foo}", ""},
		{"51", "foo{1a=1}", "foo{1a=1,service_name=foo}", ""},
		{"52", "foo{a b=1}", "", kindLabelInvalid},
		{"53", "foo{é=1}", "", kindLabelInvalid},
		{"54", "foo{a=é}", "foo{a=é,service_name=foo}", ""},
		{"55", `foo{a="q"}`, `foo{a="q",service_name=foo}`, ""},
		{"56", "foo{a=b c}", "foo{a=b c,service_name=foo}", ""},
		{"57", "foo{a=\u00a0x\u2003}", "foo{a=x,service_name=foo}", ""},
		{"58", "foo{__name__=bar}", "bar{service_name=bar}", ""},
		{"59", "foo{__name__=bar baz}", "bar baz{service_name=bar baz}", ""},
		{"60", "foo{__name__=}", "", kindNoLabels},
		{"61", "foo{service_name=svc}", "svc{app_name=foo,service_name=svc}", ""},
		{"62", "foo{service_name=svc,app_name=mine}", "svc{app_name=foo,service_name=svc}", ""},
		{"63", "foo{service_name=}", "foo{app_name=foo}", ""},
		{"64", "foo{app_name=mine}", "foo{app_name=mine,service_name=foo}", ""},
		{"65", "foo{__session_id__=abc}", "foo{__session_id__=abc,service_name=foo}", ""},
		{"66", "foo{a=\xff}", "foo{a=\ufffd,service_name=foo}", ""},
		{"67", "foo\xff", "", kindNameInvalid},
		{"68", "foo{A=1,a=2,_=3,B=4}", "foo{A=1,B=4,_=3,a=2,service_name=foo}", ""},
		{"69", "foo{a=1;b=2}", "foo{a=1;b=2,service_name=foo}", ""},
		{"71", "foo{a=1,b}", "foo{a=1,service_name=foo}", ""},
		{"71b", "foo{a=1,b,}", "foo{a=1,service_name=foo}", ""},
		{"72", "foo{a=1,b,c=3}", "", kindLabelInvalid},
	} {
		t.Run(test.row, func(t *testing.T) {
			got := referenceIngest("name="+url.QueryEscape(test.input), nil)
			if got.Name != test.sent || got.Kind != test.err || got.OK != (test.err == "") {
				t.Errorf("%q gives %+v, want %q or %s", test.input, got, test.sent, test.err)
			}
			want := url.Values{"name": {test.sent}}.Encode()
			if got.OK && got.Query != want {
				t.Errorf("query %q, want %q", got.Query, want)
			}
		})
	}
	t.Run("70", func(t *testing.T) {
		if got := referenceIngest("name=foo{a=1;b=2}", nil); got.OK || got.Kind != kindNameRequired {
			t.Errorf("a raw semicolon gives %+v", got)
		}
	})
}

// TestParserAgainstTheRealOne compares with the parser that Alloy uses.
func TestParserAgainstTheRealOne(t *testing.T) {
	const seed, rounds = 1, 200_000
	random := rand.New(rand.NewPCG(seed, seed))
	pieces := []string{
		"foo", "a", "b", "1", "_", ".", "-", "/", "{", "{", "}", "}", "=", "=", "=", ",", ",", " ", "\t", "\u00a0", "é", "\xff",
		"\xe2\x82", "\x00", ";", `"`, "__name__", "service_name", "a=1", ",b=2", "{a=1}",
	}
	accepted := 0
	for range rounds {
		var name strings.Builder
		if random.IntN(4) > 0 {
			name.WriteString("foo{") // most garbage fails in the name; start some beyond it
		}
		for range random.IntN(12) {
			name.WriteString(pieces[random.IntN(len(pieces))])
		}
		ours := referenceName(name.String())
		theirs, err := labelset.Parse(name.String())
		if ours.OK != (err == nil) {
			t.Fatalf("%q: ours %+v, real error %v", name.String(), ours, err)
		}
		if err != nil {
			continue
		}
		accepted++
		if !reflect.DeepEqual(ours.Labels, list(theirs.Labels())) || ours.Normalised != theirs.Normalized() {
			t.Fatalf("%q: ours %+v, real %v %q", name.String(), ours, theirs.Labels(), theirs.Normalized())
		}
	}
	if accepted < rounds/10 || accepted > rounds*9/10 {
		t.Errorf("%d of %d names were accepted: the generator is lopsided", accepted, rounds)
	}
}

func TestPushRules(t *testing.T) {
	for _, test := range []struct {
		name     string
		labels   []label
		external externalLabels
		want     []label // nil: refused
		kind     string
	}{
		{name: "service_name absent", labels: []label{{"__name__", "cpu"}, {"env", "x"}},
			want: []label{{"__name__", "cpu"}, {"env", "x"}, {"service_name", "cpu"}}},
		{name: "service_name present", labels: []label{{"service_name", "s"}, {"__name__", "cpu"}},
			want: []label{{"__name__", "cpu"}, {"app_name", "cpu"}, {"service_name", "s"}}},
		{name: "app_name overwritten", labels: []label{{"service_name", "s"}, {"__name__", "cpu"}, {"app_name", "mine"}},
			want: []label{{"__name__", "cpu"}, {"app_name", "cpu"}, {"service_name", "s"}}},
		{name: "app_name deleted", labels: []label{{"service_name", "s"}, {"app_name", "mine"}},
			want: []label{{"service_name", "s"}}},
		{name: "app_name kept", labels: []label{{"__name__", "cpu"}, {"app_name", "mine"}},
			want: []label{{"__name__", "cpu"}, {"app_name", "mine"}, {"service_name", "cpu"}}},
		{name: "neither", labels: []label{{"env", "x"}}, want: []label{{"env", "x"}}},
		{name: "empty service_name is absent", labels: []label{{"__name__", "cpu"}, {"service_name", ""}},
			want: []label{{"__name__", "cpu"}, {"service_name", "cpu"}}},
		{name: "last wins", labels: []label{{"a", "1"}, {"a", "2"}}, want: []label{{"a", "2"}}},
		{name: "empty deletes", labels: []label{{"a", "1"}, {"b", "1"}, {"a", ""}}, want: []label{{"b", "1"}}},
		{name: "back after an empty one", labels: []label{{"a", ""}, {"a", "1"}}, want: []label{{"a", "1"}}},
		{name: "two underscores", labels: []label{{"__session_id__", "x"}, {"__delta__", "false"}, {"a", "1"}},
			want: []label{{"__delta__", "false"}, {"a", "1"}}},
		{name: "only filtered ones", labels: []label{{"__x__", "1"}}, want: []label{}},
		{name: "bytewise", labels: []label{{"a", "1"}, {"B", "1"}, {"_", "1"}, {"a.b", "1"}, {"a1", "1"}},
			want: []label{{"B", "1"}, {"_", "1"}, {"a", "1"}, {"a.b", "1"}, {"a1", "1"}}},
		{name: "external overrides", labels: []label{{"a", "1"}}, external: externalLabels{"a": "2", "x-y": "unchecked"},
			want: []label{{"a", "2"}, {"x-y", "unchecked"}}},
		{name: "external deletes", labels: []label{{"a", "1"}, {"b", "1"}}, external: externalLabels{"a": ""},
			want: []label{{"b", "1"}}},
		{name: "external service_name does not redo", labels: []label{{"__name__", "cpu"}}, external: externalLabels{"service_name": "s"},
			want: []label{{"__name__", "cpu"}, {"service_name", "s"}}},
		{name: "none", labels: nil, kind: kindNoLabels},
		{name: "all deleted", labels: []label{{"a", ""}}, kind: kindNoLabels},
		{name: "dash", labels: []label{{"a-b", "1"}}, kind: kindLabelInvalid},
		{name: "dash before the filter", labels: []label{{"__a-b__", "1"}}, kind: kindLabelInvalid},
		{name: "dash with an empty value", labels: []label{{"a-b", ""}, {"a", "1"}}, want: []label{{"a", "1"}}},
		{name: "empty name", labels: []label{{"", "1"}, {"a", "1"}}, kind: kindEmptyName},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := referencePush([]series{{Labels: test.labels}}, test.external)
			if test.want == nil {
				if got.OK || len(got.Series) != 0 || !reflect.DeepEqual(got.Refused, []refusedSeries{{0, test.kind}}) {
					t.Errorf("got %+v, want it refused as %s", got, test.kind)
				}
				return
			}
			if !got.OK || len(got.Series) != 1 || !reflect.DeepEqual(got.Series[0].Labels, test.want) {
				t.Errorf("got %+v, want %v", got, test.want)
			}
		})
	}
}

func TestIngestRules(t *testing.T) {
	for _, test := range []struct {
		name, query string
		external    externalLabels
		want        string // of the whole query; "" when refused
	}{
		{"WIRE.md 2.6", "until=2&from=1&name=app{z=1}&a=3&a=1&format=pprof", nil,
			"a=3&a=1&format=pprof&from=1&name=app%7Bservice_name%3Dapp%2Cz%3D1%7D&until=2"},
		{"first name counts", "name=a&name=b", nil, "name=a%7Bservice_name%3Da%7D"},
		{"an empty first name counts too", "name=&name=b", nil, ""},
		{"no name", "from=1", nil, ""},
		{"bad escape drops the pair", "x=%zz&name=a", nil, "name=a%7Bservice_name%3Da%7D"},
		{"external overrides", "name=a{env=x}", externalLabels{"env": "y"}, "name=a%7Benv%3Dy%2Cservice_name%3Da%7D"},
		{"external deletes", "name=a{env=x}", externalLabels{"env": ""}, "name=a%7Bservice_name%3Da%7D"},
		{"external name", "name=a", externalLabels{"__name__": "b"}, "name=b%7Bservice_name%3Da%7D"},
		{"external values are not escaped", "name=a", externalLabels{"z": "1,q=2"}, "name=a%7Bservice_name%3Da%2Cz%3D1%2Cq%3D2%7D"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := referenceIngest(test.query, test.external); got.Query != test.want || got.OK != (test.want != "") {
				t.Errorf("got %+v, want %q", got, test.want)
			}
		})
	}
}

func TestReferenceCommand(t *testing.T) {
	input := strings.Join([]string{
		`{"op":"push","external":{"x":"y"},"series":[{"labels":[["a","1"]],"samples":[{"id":"i","size":1,"sha256":"s"}]},{"labels":[["a-b","1"]]}]}`,
		`{"op":"ingest","query":"name=foo"}`,
		`{"op":"ingest","query":{"hex":"6e616d653d666f6f7b613dff7d"}}`,
		`{"op":"name","name":"foo{a=}"}`,
		`{"op":"name","name":"foo bar"}`,
		`{"op":"ingest"}`,
		`nonsense`,
	}, "\n")
	var output bytes.Buffer
	if err := referenceCommand(t.Context(), nil, strings.NewReader(input), newLines(&output)); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`{"ok":false,"series":[{"index":0,"labels":[["a","1"],["x","y"]],"samples":[{"id":"i","size":1,"sha256":"s"}],"annotations":0}],"refused":[{"index":1,"kind":"label_invalid"}]}`,
		`{"ok":true,"name":"foo{service_name=foo}","query":"name=foo%7Bservice_name%3Dfoo%7D","labels":[["__name__","foo"],["service_name","foo"]]}`,
		`{"ok":true,"name":"foo{a=` + "\ufffd" + `,service_name=foo}","query":"name=foo%7Ba%3D%EF%BF%BD%2Cservice_name%3Dfoo%7D","labels":[["__name__","foo"],["a","` + "\ufffd" + `"],["service_name","foo"]]}`,
		`{"ok":true,"labels":[["__name__","foo"],["a",""]],"normalised":"foo{a=}"}`,
		`{"ok":false,"kind":"name_invalid"}`,
	}
	got := strings.Split(strings.TrimSpace(output.String()), "\n")
	if len(got) != len(want)+2 {
		t.Fatalf("%d lines for %d:\n%s", len(got), len(want)+2, output.String())
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("line %d\n got %s\nwant %s", i, got[i], want[i])
		}
	}
	for _, line := range got[len(want):] {
		var failed inputError
		if err := json.Unmarshal([]byte(line), &failed); err != nil || failed.InputError == "" {
			t.Errorf("want an input_error, got %s", line)
		}
	}
}
