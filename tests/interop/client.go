// This file is responsible for `interop client`: one real connect-go call to
// Push, and one JSON line that says what was sent, what should arrive behind a
// gateway, and what came back. It judges nothing.
package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	pushv1 "github.com/grafana/pyroscope/api/gen/proto/go/push/v1"
	"github.com/grafana/pyroscope/api/gen/proto/go/push/v1/pushv1connect"
)

// clientOptions are the flags of the subcommand.
type clientOptions struct {
	addr        string
	roots       *x509.CertPool // nil: cleartext
	call        clientCase
	timeout     time.Duration // of the cutTimeout cases; travels to the server
	deadline    time.Duration // of every call; does not travel
	cancelAfter time.Duration // of the cutWritten cases: from fully written to the cancel
	header      http.Header
	external    externalLabels
}

// clientLine is what the subcommand prints.
type clientLine struct {
	Case      string       `json:"case"`
	Wire      wireKind     `json:"wire"`
	Gzip      bool         `json:"gzip"`
	Result    callResult   `json:"result"`
	HTTP      httpExchange `json:"http"`
	Sent      sentPush     `json:"sent"`
	Expected  expectedPush `json:"expected"`
	Cut       callCut      `json:"cut"`
	ElapsedMS int64        `json:"elapsed_ms"`
}

// callResult is connect-go's verdict.
type callResult struct {
	OK        bool                `json:"ok"`
	Code      string              `json:"code"`      // "ok" or the name of a Connect code
	Message   string              `json:"message"`   // as the server wrote it, without connect-go's prefix
	FromWire  bool                `json:"from_wire"` // the server sent this error; false: connect-go made it
	Details   []string            `json:"details"`   // protobuf type names
	ErrorMeta map[string][]string `json:"error_meta"`
}

// httpExchange is what passed over the socket; empty parts never happened.
type httpExchange struct {
	RequestHeaders   map[string][]string `json:"request_headers"`
	Proto            string              `json:"proto"`
	Status           int                 `json:"status"` // 0: no answer
	ResponseHeaders  map[string][]string `json:"response_headers"`
	ContentLength    int64               `json:"content_length"` // -1: unknown
	TransferEncoding []string            `json:"transfer_encoding"`
	BodyBytes        int64               `json:"body_bytes"`  // of the answer, as on the wire
	BodySHA256       string              `json:"body_sha256"` // of those bytes
	Trailers         map[string][]string `json:"trailers"`    // HTTP trailers only
}

type sentPush struct {
	Series []series `json:"series"`
	SHA256 string   `json:"sha256"` // over the series array
}

// callCut says which of the client's own limits ended the call.
type callCut struct {
	Written  bool `json:"written"`  // the request was completely written before the cancel
	MidBody  bool `json:"mid_body"` // the body was cut in half
	Deadline bool `json:"deadline"` // --deadline ran out: the server neither answered nor closed
}

func clientCommand(ctx context.Context, args []string, stdin io.Reader, out *lines) error {
	flags := newFlags("client")
	addr := flags.String("addr", "", "host:port, http:// or https:// URL of the gateway")
	ca := flags.String("ca", "", "PEM file with whom to trust, for https://")
	name := flags.String("case", "", "a case of --list")
	list := flags.Bool("list", false, "print the cases and end")
	wire := flags.String("wire", "", "send the case over another protocol")
	gzip := flags.Bool("gzip", false, "compress the request, whatever the case says")
	timeout := flags.Duration("timeout", 500*time.Millisecond, "deadline of the timeout cases, sent to the server")
	deadline := flags.Duration("deadline", 20*time.Second, "bound of every call, not sent to the server")
	cancelAfter := flags.Duration("cancel-after", 0, "wait this long between the last byte and the cancel")
	header := http.Header{}
	flags.Func("header", "'Name: value' to add to the request; repeatable", func(text string) error {
		key, value, found := strings.Cut(text, ":")
		if !found {
			return errors.New("needs the form 'Name: value'")
		}
		header.Add(strings.TrimSpace(key), strings.TrimSpace(value))
		return nil
	})
	external := externalLabels{}
	flags.Func("external", "'name=value' of the gateway's external labels, for `expected`; repeatable", func(text string) error {
		key, value, found := strings.Cut(text, "=")
		if !found {
			return errors.New("needs the form 'name=value'")
		}
		external[key] = value
		return nil
	})
	if err := parseFlags(flags, args, false); err != nil {
		return err
	}
	if *list {
		return listCases(out)
	}
	call, found := findCase(*name)
	if !found {
		return usagef("client: unknown case %q, see --list", *name)
	}
	call.wire = wireKind(cmp.Or(*wire, string(call.wire)))
	if !slices.Contains(wireKinds, call.wire) {
		return usagef("client: unknown --wire %q", call.wire)
	}
	call.gzip = call.gzip || *gzip
	if *addr == "" {
		return usagef("client: --addr is required")
	}
	if call.series == nil {
		given, err := readSeries(stdin)
		if err != nil {
			return err
		}
		call.series = func() []*pushv1.RawProfileSeries { return given }
	}
	roots, err := readRoots(*ca)
	if err != nil {
		return err
	}
	return out.print(callOnce(ctx, clientOptions{
		addr: baseURL(*addr), roots: roots, call: call, timeout: *timeout, deadline: *deadline,
		cancelAfter: *cancelAfter, header: header, external: external,
	}))
}

func listCases(out *lines) error {
	for _, c := range clientCases {
		if err := out.print(map[string]any{"case": c.name, "wire": c.wire, "gzip": c.gzip, "about": c.about}); err != nil {
			return err
		}
	}
	return nil
}

func readSeries(stdin io.Reader) ([]*pushv1.RawProfileSeries, error) {
	scanner := bufio.NewScanner(stdin)
	scanner.Buffer(nil, lineBytesMax)
	if !scanner.Scan() {
		return nil, cmp.Or(scanner.Err(), io.ErrUnexpectedEOF)
	}
	var given struct {
		Series []givenSeries `json:"series"`
	}
	if err := json.Unmarshal(scanner.Bytes(), &given); err != nil {
		return nil, fmt.Errorf("client: the series on standard input: %w", err)
	}
	built := make([]*pushv1.RawProfileSeries, 0, len(given.Series))
	for _, one := range given.Series {
		built = append(built, one.proto())
	}
	return built, nil
}

func readRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("client: %s holds no certificate", file)
	}
	return roots, nil
}

func baseURL(addr string) string {
	if strings.Contains(addr, "://") {
		return strings.TrimRight(addr, "/")
	}
	return "http://" + addr
}

// callOnce makes the call and always returns, at the latest after the deadline.
func callOnce(ctx context.Context, options clientOptions) clientLine {
	pushed := options.call.series()
	line := clientLine{
		Case: options.call.name, Wire: options.call.wire, Gzip: options.call.gzip,
		Sent: describeSent(pushed), Expected: referencePush(describe(pushed), options.external),
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var expired atomic.Bool
	// A timer and not a context deadline: connect-go would put the latter on the wire.
	watchdog := time.AfterFunc(options.deadline, func() {
		expired.Store(true)
		cancel()
	})
	defer watchdog.Stop()

	recorder := &recorder{next: transport(options.call.wire, options.roots), cancel: cancel}
	defer recorder.next.CloseIdleConnections()
	switch options.call.cut {
	case cutTimeout:
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, options.timeout)
		defer stop()
	case cutWritten:
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(info httptrace.WroteRequestInfo) {
			if info.Err != nil {
				return
			}
			recorder.written.Store(true)
			time.AfterFunc(options.cancelAfter, cancel)
		}})
	case cutMidBody:
		recorder.cutInHalf = true
	case cutNever:
	}

	client := pushv1connect.NewPusherServiceClient(&http.Client{Transport: recorder}, options.addr, wireOptions(options.call)...)
	request := connect.NewRequest(&pushv1.PushRequest{Series: pushed})
	for name, values := range options.header {
		request.Header()[name] = values
	}
	started := time.Now()
	_, err := client.Push(ctx, request)
	line.ElapsedMS = time.Since(started).Milliseconds()
	line.Result = verdict(err)
	line.HTTP = recorder.exchange()
	line.Cut = callCut{Written: recorder.written.Load(), MidBody: recorder.halved.Load(), Deadline: expired.Load()}
	return line
}

func describeSent(pushed []*pushv1.RawProfileSeries) sentPush {
	described := describe(pushed)
	return sentPush{Series: described, SHA256: digest(described)}
}

// transport ignores proxies of the environment. In cleartext it opens one kind
// of HTTP only; in TLS it offers both, as Go's own client does, and the server
// chooses.
func transport(wire wireKind, roots *x509.CertPool) *http.Transport {
	protocols := new(http.Protocols)
	if roots != nil {
		protocols.SetHTTP1(true)
		protocols.SetHTTP2(true)
		return &http.Transport{
			Protocols: protocols, DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: roots},
		}
	}
	grpc := wire == wireGRPC || wire == wireGRPCJSON
	protocols.SetHTTP1(!grpc)
	protocols.SetUnencryptedHTTP2(grpc)
	return &http.Transport{Protocols: protocols, DisableCompression: true}
}

func wireOptions(call clientCase) []connect.ClientOption {
	options := []connect.ClientOption{connect.WithReadMaxBytes(1 << 20)}
	if call.gzip {
		options = append(options, connect.WithSendGzip())
	}
	switch call.wire {
	case wireConnectJSON:
		options = append(options, connect.WithProtoJSON())
	case wireGRPCWeb:
		options = append(options, connect.WithGRPCWeb())
	case wireGRPCWebJSON:
		options = append(options, connect.WithGRPCWeb(), connect.WithProtoJSON())
	case wireGRPC:
		options = append(options, connect.WithGRPC())
	case wireGRPCJSON:
		options = append(options, connect.WithGRPC(), connect.WithProtoJSON())
	case wireConnect:
	}
	return options
}

func verdict(err error) callResult {
	result := callResult{Code: "ok", OK: true, Details: []string{}, ErrorMeta: map[string][]string{}}
	if err == nil {
		return result
	}
	result.OK = false
	result.Code = connect.CodeOf(err).String()
	result.Message = err.Error()
	result.FromWire = connect.IsWireError(err)
	if coded, ok := errors.AsType[*connect.Error](err); ok {
		result.Message = coded.Message()
		result.ErrorMeta = pick(coded.Meta())
		for _, detail := range coded.Details() {
			result.Details = append(result.Details, detail.Type())
		}
	}
	return result
}

// recorder is a RoundTripper that keeps what passed, and can cut a request.
type recorder struct {
	next      *http.Transport
	cancel    context.CancelFunc
	cutInHalf bool
	written   atomic.Bool
	halved    atomic.Bool

	mu       sync.Mutex // connect-go reads the answer on goroutines of its own
	request  http.Header
	response *http.Response
	body     *tally
}

func (r *recorder) RoundTrip(request *http.Request) (*http.Response, error) {
	r.mu.Lock()
	r.request = request.Header.Clone()
	r.mu.Unlock()
	if r.cutInHalf {
		request = request.Clone(request.Context())
		request.GetBody = nil
		request.Body = &halfBody{ReadCloser: request.Body, left: request.ContentLength / 2, cut: func() {
			r.halved.Store(true)
			r.cancel()
		}}
	}
	response, err := r.next.RoundTrip(request)
	if err != nil {
		return response, err
	}
	body := newTally(response.Body)
	response.Body = body
	r.mu.Lock()
	r.response, r.body = response, body
	r.mu.Unlock()
	return response, nil
}

func (r *recorder) exchange() httpExchange {
	r.mu.Lock()
	defer r.mu.Unlock()
	exchange := httpExchange{
		RequestHeaders:   pick(r.request),
		ResponseHeaders:  map[string][]string{},
		TransferEncoding: []string{},
		Trailers:         map[string][]string{},
	}
	if r.response == nil {
		return exchange
	}
	exchange.Proto = r.response.Proto
	exchange.Status = r.response.StatusCode
	exchange.ResponseHeaders = pick(r.response.Header)
	exchange.ContentLength = r.response.ContentLength
	exchange.TransferEncoding = append(exchange.TransferEncoding, r.response.TransferEncoding...)
	exchange.BodyBytes, exchange.BodySHA256 = r.body.sum()
	exchange.Trailers = pick(r.response.Trailer)
	return exchange
}

// pick leaves out what differs between two equal runs.
func pick(header http.Header) map[string][]string {
	picked := map[string][]string{}
	for name, values := range header {
		if name != "Date" {
			picked[name] = values
		}
	}
	return picked
}

var errCutInHalf = errors.New("interop: the body is cut here on purpose")

// halfBody fails once `left` bytes were read, and calls cut.
type halfBody struct {
	io.ReadCloser
	left int64
	cut  func()
}

func (h *halfBody) Read(into []byte) (int, error) {
	if h.left <= 0 {
		h.cut()
		return 0, errCutInHalf
	}
	n, err := h.ReadCloser.Read(into[:min(int64(len(into)), h.left)])
	h.left -= int64(n)
	return n, err
}
