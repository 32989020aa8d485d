// This file is responsible for showing that `interop query` has the properties
// WIRE.md 2.6 states, so that a change of Go's rules is noticed here first.
package main

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func TestReencode(t *testing.T) {
	for _, test := range []struct {
		name, raw, encoded string
		failed             bool
	}{
		{"empty", "", "", false},
		{"empty pieces", "&&a=1&&", "a=1", false},
		{"no value", "b&a", "a=&b=", false},
		{"empty key", "=1", "=1", false},
		{"first equals sign", "a=b=c", "a=b%3Dc", false},
		{"plus is a space", "a=b+c%20d", "a=b+c+d", false},
		{"values keep their order", "a=3&b=0&a=1", "a=3&a=1&b=0", false},
		{"raw semicolon", "a=1;b=2&c=3", "c=3", true},
		{"escaped semicolon", "a=1%3Bb", "a=1%3Bb", false},
		{"bad escape in a value", "a=%zz&b=1", "b=1", true},
		{"bad escape in a key", "%=1&b=1", "b=1", true},
		{"unreserved", "a=AZaz09-_.~", "a=AZaz09-_.~", false},
		{"the rest is escaped", "a={}=,/!*'()", "a=%7B%7D%3D%2C%2F%21%2A%27%28%29", false},
		{"bytes", "a=\xff\x00", "a=%FF%00", false},
		{"keys are bytewise", "b=1&B=1&%C3%BC=1&_=1", "B=1&_=1&b=1&%C3%BC=1", false},
		{"ten thousand", strings.Repeat("&", 9999) + "a=1", "a=1", false},
		{"more than ten thousand", strings.Repeat("&", 10000) + "a=1", "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := reencode(test.raw); got.Encoded != test.encoded || (got.Error != "") != test.failed {
				t.Errorf("got %+v, want %q (failed: %v)", got, test.encoded, test.failed)
			}
		})
	}
}

func TestPairsFollowTheEncodedOrder(t *testing.T) {
	want := [][2]string{{"61", "33"}, {"61", "ff"}, {"62", ""}}
	if got := reencode("b&a=3&a=%ff").Pairs; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestQueryCommand(t *testing.T) {
	var output bytes.Buffer
	input := "\"a=1&<>\"\n\n{\"hex\":\"613dff\"}\n{\"hex\":\"6\"}\n{\"hex\":null}\n7\n"
	if err := queryCommand(t.Context(), nil, strings.NewReader(input), newLines(&output)); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(output.String()), "\n")
	want := []string{
		`{"encoded":"%3C%3E=&a=1","pairs":[["3c3e",""],["61","31"]],"error":""}`,
		`{"encoded":"a=%FF","pairs":[["61","ff"]],"error":""}`,
	}
	if len(got) != 5 || got[0] != want[0] || got[1] != want[1] {
		t.Fatalf("got\n%s", output.String())
	}
	for _, line := range got[2:] {
		if !strings.HasPrefix(line, `{"input_error":`) {
			t.Errorf("want an input_error, got %s", line)
		}
	}
}
