// This file is responsible for the server's flags and for what it records,
// seen through plain HTTP and through the real client.
package main

import (
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/grafana/pyroscope/api/gen/proto/go/push/v1/pushv1connect"
)

func TestTimesThenSuccess(t *testing.T) {
	server := startServer(t, serverOptions{code: connect.CodeUnavailable, times: 2, message: "later"})
	for i, want := range []string{"unavailable", "unavailable", "ok", "ok"} {
		line := callCase(server.addr, mustCase(t, "connect-proto"))
		if received := server.next(t, eventPush); line.Result.Code != want || received.Answer != want || received.N != int64(i+1) {
			t.Errorf("call %d: got %s, printed %s as number %d, want %s", i, line.Result.Code, received.Answer, received.N, want)
		}
	}
}

func TestPartialAcceptsEveryOther(t *testing.T) {
	server := startServer(t, serverOptions{code: connect.CodeInvalidArgument, partial: true, message: "half"})
	line := callCase(server.addr, mustCase(t, "several-series"))
	if line.Result.Code != "invalid_argument" {
		t.Errorf("result %+v", line.Result)
	}
	if received := server.next(t, eventPush); !reflect.DeepEqual(received.Accepted, []int{0, 2}) {
		t.Errorf("accepted %v", received.Accepted)
	}
}

func TestProtoOnlyRefusesTheRest(t *testing.T) {
	server := startServer(t, serverOptions{protoOnly: true})
	for _, wire := range wireKinds {
		call := mustCase(t, "connect-proto")
		call.wire = wire
		line := callCase(server.addr, call)
		if wire == wireConnect {
			server.next(t, eventPush)
		} else if refused := server.next(t, eventRefused); refused.Status != http.StatusUnsupportedMediaType {
			t.Errorf("%s: status %d", wire, refused.Status)
		}
		if line.Result.OK != (wire == wireConnect) {
			t.Errorf("%s: %+v", wire, line.Result)
		}
	}
}

func TestDelayIsKept(t *testing.T) {
	const delay = 80 * time.Millisecond
	server := startServer(t, serverOptions{delay: delay})
	line := callCase(server.addr, mustCase(t, "connect-proto"))
	if !line.Result.OK || line.ElapsedMS < delay.Milliseconds() {
		t.Errorf("answered %+v after %d ms", line.Result, line.ElapsedMS)
	}
}

// TestPushStatus is also the table of WIRE.md 3.3: what connect-go makes of a
// plain answer.
func TestPushStatus(t *testing.T) {
	for status, code := range map[int]string{
		400: "internal", 401: "unauthenticated", 403: "permission_denied", 404: "unimplemented", 429: "unavailable",
		502: "unavailable", 503: "unavailable", 504: "unavailable",
		204: "unknown", 304: "unknown", 405: "unknown", 408: "unknown", 409: "unknown", 413: "unknown", 415: "unknown",
		422: "unknown", 499: "unknown", 500: "unknown", 501: "unknown", 200: "unknown",
	} {
		server := startServer(t, serverOptions{pushStatus: status, retryAfter: "3"})
		line := callCase(server.addr, mustCase(t, "connect-gzip"))
		if line.Result.Code != code || line.HTTP.Status != status {
			t.Errorf("%d: %+v, status %d, want %s", status, line.Result, line.HTTP.Status, code)
		}
		if received := server.next(t, eventPush); !reflect.DeepEqual(received.Series, line.Sent.Series) {
			t.Errorf("%d: received %+v", status, received.Series)
		}
	}
}

func TestIngestIsRecorded(t *testing.T) {
	server := startServer(t, serverOptions{ingestStatus: 429, retryAfter: "5", times: 1})
	for _, want := range []int{429, 200} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
			"http://"+server.addr+"/ingest?name=app%7Ba%3D1%7D&z=1&z=%C3%BC", strings.NewReader("profile"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header["Content-Type"] = []string{"one/x", "two/y; boundary=b"}
		status, header, body := do(t, request)
		line := server.next(t, eventIngest)
		if status != want || line.Status != want || (status == 200) != (body == "") || (status == 429) != (header.Get("Retry-After") == "5") {
			t.Errorf("status %d, printed %d, body %q, want %d", status, line.Status, body, want)
		}
		if line.Query != "name=app%7Ba%3D1%7D&z=1&z=%C3%BC" ||
			!reflect.DeepEqual(line.Params, map[string][]string{"name": {"app{a=1}"}, "z": {"1", "ü"}}) {
			t.Errorf("query %q, params %v", line.Query, line.Params)
		}
		if line.BodyBytes != 7 || line.BodySHA256 != sha256Hex([]byte("profile")) || line.ContentLength != 7 {
			t.Errorf("body %d %s of %d", line.BodyBytes, line.BodySHA256, line.ContentLength)
		}
		if !reflect.DeepEqual(line.Type, []string{"one/x", "two/y; boundary=b"}) {
			t.Errorf("content types %q", line.Type)
		}
	}
}

func TestOtherPathsAndMethods(t *testing.T) {
	server := startServer(t, serverOptions{})
	push := pushv1connect.PusherServicePushProcedure
	for _, test := range []struct {
		name, method, path, contentType, body, event string
		status                                       int
	}{
		{"unknown path", "POST", "/nowhere", "", "", eventOther, 404},
		{"get ingest", "GET", "/ingest", "", "", eventIngest, 405},
		{"get push", "GET", push, "", "", eventRefused, 405},
		{"foreign type", "POST", push, "text/plain", "x", eventRefused, 415},
		{"truncated protobuf", "POST", push, "application/proto", "\x0a\x05", eventRefused, 400},
		{"empty JSON", "POST", push, "application/json", "", eventRefused, 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), test.method, "http://"+server.addr+test.path, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Content-Type", test.contentType)
			status, _, _ := do(t, request)
			if line := server.next(t, test.event); status != test.status || line.Status != test.status {
				t.Errorf("status %d, printed %d", status, line.Status)
			}
		})
	}
}

func TestServerFlags(t *testing.T) {
	for code := connect.CodeCanceled; code <= connect.CodeUnauthenticated; code++ {
		options, err := parseServerFlags([]string{"--code", code.String()})
		if err != nil || options.code != code || !strings.HasSuffix(options.message, code.String()) {
			t.Errorf("%s: %+v, %v", code, options, err)
		}
	}
	for name, args := range map[string][]string{
		"unknown code":    {"--code", "teapot"},
		"interim status":  {"--push-status", "100"},
		"code and status": {"--push-status", "429", "--code", "internal"},
		"left over":       {"stray"},
		"unknown flag":    {"--bogus"},
	} {
		if _, err := parseServerFlags(args); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if options, err := parseServerFlags([]string{"--partial"}); err != nil || options.code != connect.CodeInvalidArgument {
		t.Errorf("--partial alone: %+v, %v", options, err)
	}
}

func do(t *testing.T, request *http.Request) (int, http.Header, string) {
	t.Helper()
	client := &http.Client{Timeout: testDeadline, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(body)
}
