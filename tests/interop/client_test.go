// This file is responsible for the client against the server, with nothing in
// between: what holds here is what a gateway between them must keep.
package main

import (
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
)

var contentTypes = map[wireKind]string{
	wireConnect:     "application/proto",
	wireConnectJSON: "application/json",
	wireGRPCWeb:     "application/grpc-web+proto",
	wireGRPCWebJSON: "application/grpc-web+json",
	wireGRPC:        "application/grpc",
	wireGRPCJSON:    "application/grpc+json",
}

var protocols = map[wireKind]string{
	wireConnect:     connect.ProtocolConnect,
	wireConnectJSON: connect.ProtocolConnect,
	wireGRPCWeb:     connect.ProtocolGRPCWeb,
	wireGRPCWebJSON: connect.ProtocolGRPCWeb,
	wireGRPC:        connect.ProtocolGRPC,
	wireGRPCJSON:    connect.ProtocolGRPC,
}

// TestEveryCaseArrivesEqual sends every case over every protocol, plain and gzip.
func TestEveryCaseArrivesEqual(t *testing.T) {
	server := startServer(t, serverOptions{})
	for _, call := range clientCases {
		if call.cut == cutWritten || call.cut == cutMidBody || call.series == nil {
			continue // these have tests of their own
		}
		call.cut = cutNever
		for _, wire := range wireKinds {
			for _, gzip := range []bool{false, true} {
				call.wire, call.gzip = wire, gzip
				t.Run(fmt.Sprintf("%s/%s/gzip=%v", call.name, wire, gzip), func(t *testing.T) {
					arrivesEqual(t, server, call)
				})
			}
		}
	}
}

func arrivesEqual(t *testing.T, server *testServer, call clientCase) {
	line := callCase(server.addr, call)
	if !line.Result.OK || line.Result.Code != "ok" {
		t.Fatalf("result %+v", line.Result)
	}
	received := server.next(t, eventPush)
	if !reflect.DeepEqual(received.Series, line.Sent.Series) {
		t.Errorf("received %+v\nsent     %+v", received.Series, line.Sent.Series)
	}
	if digest(received.Series) != line.Sent.SHA256 {
		t.Errorf("received digest differs from the sent %s", line.Sent.SHA256)
	}
	if received.Protocol != protocols[call.wire] || received.Answer != "ok" || len(received.Accepted) != len(received.Series) {
		t.Errorf("protocol %s, answer %s, accepted %v", received.Protocol, received.Answer, received.Accepted)
	}
	got := strings.Join(received.Headers["Content-Type"], "|")
	if got != contentTypes[call.wire] {
		t.Errorf("Content-Type %q", got)
	}
	if line.HTTP.Status != http.StatusOK {
		t.Errorf("status %d", line.HTTP.Status)
	}
	compressed := received.Headers["Content-Encoding"]
	if call.wire != wireConnect && call.wire != wireConnectJSON {
		compressed = received.Headers["Grpc-Encoding"]
	}
	if got := strings.Join(compressed, "|"); (got == "gzip") != call.gzip {
		t.Errorf("encoding %q", got)
	}
	if line.Cut != (callCut{}) {
		t.Errorf("cut %+v", line.Cut)
	}
}

func TestCaseIsTheSameOnEveryRun(t *testing.T) {
	for _, call := range clientCases {
		if call.series == nil {
			continue
		}
		if first, second := describeSent(call.series()), describeSent(call.series()); first.SHA256 != second.SHA256 {
			t.Errorf("%s: %s, then %s", call.name, first.SHA256, second.SHA256)
		}
	}
	// One digest is pinned, so that it also holds from build to build.
	const want = "fb7ccd0fc5860a40470074f6350036f429f894f5e1793e0356e9260deb22403f"
	if got := describeSent(severalSeries()).SHA256; got != want {
		t.Errorf("several-series has the digest %s, want %s", got, want)
	}
}

func TestCasesHaveTheirShape(t *testing.T) {
	if got := len(manySeries()); got != 200 {
		t.Errorf("series-200 has %d series", got)
	}
	if got := len(bigProfile()[0].GetSamples()[0].GetRawProfile()); got != 8<<20 {
		t.Errorf("big-profile has %d bytes", got)
	}
	names := map[string]bool{}
	for _, call := range clientCases {
		if names[call.name] {
			t.Errorf("%s is there twice", call.name)
		}
		names[call.name] = true
	}
}

// TestCodes returns each Connect code over each protocol.
func TestCodes(t *testing.T) {
	for code := connect.CodeCanceled; code <= connect.CodeUnauthenticated; code++ {
		t.Run(code.String(), func(t *testing.T) {
			server := startServer(t, serverOptions{code: code, message: "<because> ü", details: true, retryAfter: "7"})
			for _, wire := range wireKinds {
				call := mustCase(t, "connect-proto")
				call.wire = wire
				line := callCase(server.addr, call)
				result := line.Result
				if result.OK || result.Code != code.String() || result.Message != "<because> ü" || !result.FromWire {
					t.Errorf("%s: %+v", wire, result)
				}
				if !reflect.DeepEqual(result.Details, []string{"google.protobuf.Duration"}) {
					t.Errorf("%s: details %v", wire, result.Details)
				}
				if got := result.ErrorMeta["Retry-After"]; !reflect.DeepEqual(got, []string{"7"}) {
					t.Errorf("%s: Retry-After %q", wire, got)
				}
				received := server.next(t, eventPush)
				if received.Answer != code.String() || len(received.Accepted) != 0 {
					t.Errorf("%s: answer %s, accepted %v", wire, received.Answer, received.Accepted)
				}
			}
		})
	}
}

func TestTimeoutTravelsAndFires(t *testing.T) {
	for name, header := range map[string]string{"timeout": "Connect-Timeout-Ms", "timeout-grpc-web": "Grpc-Timeout"} {
		t.Run(name, func(t *testing.T) {
			server := startServer(t, serverOptions{delay: testDeadline})
			line := callCase(server.addr, mustCase(t, name))
			if line.Result.Code != "deadline_exceeded" {
				t.Errorf("result %+v", line.Result)
			}
			if len(line.HTTP.RequestHeaders[header]) != 1 {
				t.Errorf("sent headers %v", line.HTTP.RequestHeaders)
			}
			if received := server.next(t, eventPush); len(received.Headers[header]) != 1 {
				t.Errorf("received headers %v", received.Headers)
			}
			server.next(t, eventGone)
		})
	}
}

func TestOtherCasesCarryNoTimeout(t *testing.T) {
	server := startServer(t, serverOptions{})
	callCase(server.addr, mustCase(t, "connect-proto"))
	if received := server.next(t, eventPush); received.Headers["Connect-Timeout-Ms"] != nil {
		t.Errorf("headers %v", received.Headers)
	}
}

func TestCancelAfterTheRequestIsWritten(t *testing.T) {
	server := startServer(t, serverOptions{delay: testDeadline})
	line := callCase(server.addr, mustCase(t, "cancel"))
	if line.Result.Code != "canceled" || !line.Cut.Written || line.Result.FromWire {
		t.Errorf("result %+v, cut %+v", line.Result, line.Cut)
	}
	received := server.next(t, eventPush)
	if !reflect.DeepEqual(received.Series, line.Sent.Series) {
		t.Errorf("the whole push should have arrived: %+v", received.Series)
	}
	if gone := server.next(t, eventGone); gone.Reason != "left" || gone.N != received.N {
		t.Errorf("gone %+v", gone)
	}
}

func TestCancelInTheMiddleOfTheBody(t *testing.T) {
	server := startServer(t, serverOptions{})
	line := callCase(server.addr, mustCase(t, "cancel-mid-body"))
	if line.Result.OK || !line.Cut.MidBody {
		t.Errorf("result %+v, cut %+v", line.Result, line.Cut)
	}
	refused := server.next(t, eventRefused)
	if refused.BodyBytes == 0 || refused.BodyBytes >= refused.ContentLength {
		t.Errorf("read %d of %d bytes", refused.BodyBytes, refused.ContentLength)
	}
}

func TestNobodyListens(t *testing.T) {
	listener := listen(t)
	addr := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	line := callCase(addr, mustCase(t, "connect-proto"))
	if line.Result.Code != "unavailable" || line.Result.FromWire || line.HTTP.Status != 0 {
		t.Errorf("result %+v, http %+v", line.Result, line.HTTP)
	}
}

func TestSilentGatewayEndsAtTheDeadline(t *testing.T) {
	listener := listen(t) // the kernel accepts for it; nobody reads
	defer listener.Close()
	line := callOnce(t.Context(), clientOptions{
		addr: baseURL(listener.Addr().String()), call: mustCase(t, "connect-proto"), deadline: 100 * time.Millisecond,
	})
	if !line.Cut.Deadline || line.Result.OK {
		t.Errorf("result %+v, cut %+v", line.Result, line.Cut)
	}
}

func TestGRPCWithoutH2CFails(t *testing.T) {
	listener := listen(t)
	server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: testDeadline}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	line := callCase(listener.Addr().String(), mustCase(t, "grpc-h2c"))
	if line.Result.OK || line.Result.FromWire || line.Cut.Deadline {
		t.Errorf("result %+v, cut %+v", line.Result, line.Cut)
	}
}

func TestExtraHeadersAreSent(t *testing.T) {
	server := startServer(t, serverOptions{})
	callOnce(t.Context(), clientOptions{
		addr: baseURL(server.addr), call: mustCase(t, "connect-proto"), deadline: testDeadline,
		header: http.Header{"X-Scope-Orgid": {"team-a"}},
	})
	if got := server.next(t, eventPush).Headers["X-Scope-Orgid"]; !reflect.DeepEqual(got, []string{"team-a"}) {
		t.Errorf("X-Scope-OrgID %q", got)
	}
}

func TestSeriesFromStandardInput(t *testing.T) {
	given, err := readSeries(strings.NewReader(
		`{"series":[{"labels":[["a","ü"]],"samples":[{"id":"x","raw_profile":"AAH/"}],"annotations":[["k","v"]]}]}` + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []series{{
		Labels: []label{{"a", "ü"}}, Annotations: 1,
		Samples: []sample{{ID: "x", Size: 3, SHA256: sha256Hex([]byte{0, 1, 0xff})}},
	}}
	if got := describe(given); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for name, text := range map[string]string{"nothing": "", "not JSON": "{\n", "wrong type": `{"series":1}`} {
		if _, err := readSeries(strings.NewReader(text)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestExpectedLeavesOutWhatAlloyRefuses(t *testing.T) {
	line := clientLine{Expected: referencePush(describe(mixedLabelNames()), nil)}
	if line.Expected.OK || len(line.Expected.Series) != 2 || line.Expected.Refused[0] != (refusedSeries{1, kindLabelInvalid}) {
		t.Errorf("expected %+v", line.Expected)
	}
}
