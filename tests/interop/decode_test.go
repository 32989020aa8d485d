// This file is responsible for holding `interop decode` to the verdicts of the
// real connect-go handler on the same bytes.
package main

import (
	"bytes"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/grafana/pyroscope/api/gen/proto/go/push/v1/pushv1connect"
)

var decodeBodies = []struct {
	name, codec, body string
	ok                bool
}{
	{"json empty object", "json", `{}`, true},
	{"json empty body", "json", ``, false},
	{"json null", "json", `null`, false},
	{"json array", "json", `[]`, false},
	{"json null field", "json", `{"series":null}`, true},
	{"json null element", "json", `{"series":[null]}`, false},
	{"json lowerCamel", "json", `{"series":[{"samples":[{"rawProfile":"AAH/"}]}]}`, true},
	{"json original name", "json", `{"series":[{"samples":[{"raw_profile":"AAH/"}]}]}`, true},
	{"json both spellings", "json", `{"series":[{"samples":[{"raw_profile":"AA==","rawProfile":"AA=="}]}]}`, false},
	{"json URL-safe", "json", `{"series":[{"samples":[{"rawProfile":"AAH_"}]}]}`, true},
	{"json unpadded", "json", `{"series":[{"samples":[{"rawProfile":"AA"}]}]}`, true},
	{"json bad base64", "json", `{"series":[{"samples":[{"rawProfile":"!"}]}]}`, false},
	{"json ID", "json", `{"series":[{"samples":[{"ID":"x"}]}]}`, true},
	{"json id is unknown", "json", `{"series":[{"samples":[{"id":"x"}]}]}`, true},
	{"json unknown field", "json", `{"Series":7}`, true},
	{"json wrong type", "json", `{"series":7}`, false},
	{"json duplicate", "json", `{"series":[],"series":[]}`, false},
	{"json trailing data", "json", `{} x`, false},
	{"json escapes", "json", `{"series":[{"labels":[{"name":"a","value":"\u00fc\n\ud83e\udd80"}]}]}`, true},
	{"json lone surrogate", "json", `{"series":[{"labels":[{"name":"a","value":"\ud83e"}]}]}`, false},
	{"json invalid UTF-8", "json", "{\"series\":[{\"labels\":[{\"name\":\"\xff\"}]}]}", false},
	{"proto empty", "proto", "", true},
	{"proto one label", "proto", "\x0a\x07\x0a\x05\x0a\x01a\x12\x00", true},
	{"proto truncated", "proto", "\x0a\x07\x0a\x05\x0a\x01a", false},
	{"proto invalid UTF-8", "proto", "\x0a\x07\x0a\x05\x0a\x01\xff\x12\x00", false},
	{"proto unknown field", "proto", "\x98\x06\x01", true},
	{"proto field number zero", "proto", "\x02\x00", false},
}

func TestDecodeAgreesWithTheHandler(t *testing.T) {
	server := startServer(t, serverOptions{})
	for _, test := range decodeBodies {
		t.Run(test.name, func(t *testing.T) {
			message, err := decodePush(test.codec, []byte(test.body))
			if (err == nil) != test.ok {
				t.Fatalf("decoded with %v, want ok: %v", err, test.ok)
			}
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
				"http://"+server.addr+pushv1connect.PusherServicePushProcedure, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Content-Type", "application/"+test.codec)
			status, _, _ := do(t, request)
			if !test.ok {
				server.next(t, eventRefused)
				if status != http.StatusBadRequest {
					t.Errorf("the handler says %d", status)
				}
				return
			}
			if received := server.next(t, eventPush); status != http.StatusOK ||
				!reflect.DeepEqual(received.Series, describe(message.GetSeries())) {
				t.Errorf("the handler says %d and has %+v", status, received.Series)
			}
		})
	}
}

func TestDecodeCommand(t *testing.T) {
	var output bytes.Buffer
	input := `{"codec":"json","body":"{\"series\":[{\"samples\":[{\"ID\":\"x\"}]}]}"}
{"codec":"proto","body":{"hex":"0aff"}}
{"codec":"xml","body":""}
{"codec":"proto"}
`
	if err := decodeCommand(t.Context(), nil, strings.NewReader(input), newLines(&output)); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(output.String()), "\n")
	want := `{"ok":true,"series":[{"labels":[],"samples":[{"id":"x","size":0,"sha256":"` + sha256Hex(nil) + `"}],"annotations":0}],"error":""}`
	if len(got) != 4 || got[0] != want {
		t.Fatalf("got\n%s", output.String())
	}
	for i, prefix := range []string{want, `{"ok":false,"series":[],"error":"`, `{"input_error":"`, `{"input_error":"`} {
		if !strings.HasPrefix(got[i], prefix) {
			t.Errorf("line %d is %s", i, got[i])
		}
	}
}
