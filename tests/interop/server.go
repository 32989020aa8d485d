// This file is responsible for `interop server`: a destination whose Push is a
// real connect-go handler and whose /ingest records. It prints what arrives
// and answers what its flags say. What it should have received is for the
// caller to know.
package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	pushv1 "github.com/grafana/pyroscope/api/gen/proto/go/push/v1"
	"github.com/grafana/pyroscope/api/gen/proto/go/push/v1/pushv1connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	bodyBytesMax    = 256 << 20 // the server limit of Pyroscope, WIRE.md 3.2
	requestTimeout  = 60 * time.Second
	shutdownTimeout = 2 * time.Second
)

// serverOptions are the flags: the behaviour of the first `times` requests of
// each route, or of all when times is 0.
type serverOptions struct {
	code         connect.Code // 0: success
	message      string
	details      bool
	retryAfter   string // header on every answer that is not a success
	times        int64
	delay        time.Duration
	partial      bool
	protoOnly    bool
	pushStatus   int // a plain-text answer in place of Connect's; 0: none
	ingestStatus int
}

// Events the server prints, in `event` of each line.
const (
	eventListening = "listening"
	eventPush      = "push"    // the handler has the decoded push; printed before any delay
	eventRefused   = "refused" // a request on the Push path that never reached the handler
	eventGone      = "gone"    // the caller left or its deadline passed during the delay
	eventIngest    = "ingest"
	eventOther     = "other" // another path; answered 404
	eventEnd       = "end"
)

// requestLine is the part all request lines share.
type requestLine struct {
	Event            string              `json:"event"`
	N                int64               `json:"n"` // 1, 2, ...: requests of this route in order of arrival
	Method           string              `json:"method"`
	Path             string              `json:"path"`
	Query            string              `json:"query"` // raw
	Proto            string              `json:"proto"`
	Host             string              `json:"host"`
	Headers          map[string][]string `json:"headers"` // all of them, canonical names
	ContentLength    int64               `json:"content_length"`
	TransferEncoding []string            `json:"transfer_encoding"`
	BodyBytes        int64               `json:"body_bytes"` // as on the wire, still compressed
	BodySHA256       string              `json:"body_sha256"`
	Peer             string              `json:"peer"` // one value per connection
}

type pushLine struct {
	requestLine
	Protocol     string   `json:"protocol"` // connect, grpcweb or grpc
	Series       []series `json:"series"`
	LabelsSorted []bool   `json:"labels_sorted"` // per series
	Accepted     []int    `json:"accepted"`      // indexes of the series that count as stored
	Answer       string   `json:"answer"`        // "ok", a Connect code, or "http <status>"
}

type refusedLine struct {
	requestLine
	Status int `json:"status"`
}

type ingestLine struct {
	requestLine
	Params      map[string][]string `json:"params"` // as net/url decodes them
	ContentType []string            `json:"content_type"`
	Status      int                 `json:"status"`
}

type goneLine struct {
	Event  string `json:"event"`
	Route  string `json:"route"` // push or ingest
	N      int64  `json:"n"`
	Reason string `json:"reason"` // "left" or "deadline"
}

// serverCommand serves until standard input ends, a signal, or --life. Holding
// the pipe is how a test makes sure that no server outlives it.
func serverCommand(ctx context.Context, args []string, stdin io.Reader, out *lines) error {
	options, err := parseServerFlags(args)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		// Whatever is read is ignored, and any error means that the other side is gone.
		_, _ = io.Copy(io.Discard, stdin)
		cancel()
	}()
	return serve(ctx, listener, options, out)
}

func parseServerFlags(args []string) (serverOptions, error) {
	var options serverOptions
	flags := newFlags("server")
	flags.Func("code", "the Connect code Push answers with", func(name string) error {
		return options.code.UnmarshalText([]byte(name))
	})
	flags.StringVar(&options.message, "message", "", "the message of that error")
	flags.BoolVar(&options.details, "details", false, "attach one error detail")
	flags.StringVar(&options.retryAfter, "retry-after", "", "value of Retry-After on answers that are not a success")
	flags.Int64Var(&options.times, "times", 0, "misbehave on the first N requests of each route only; 0: on all")
	delay := flags.Int64("delay", 0, "milliseconds before the answer")
	flags.BoolVar(&options.partial, "partial", false, "accept series 0, 2, 4, ... and answer with an error")
	flags.BoolVar(&options.protoOnly, "proto-only", false, "415 for every Content-Type but application/proto")
	flags.IntVar(&options.pushStatus, "push-status", 0, "answer Push with this status and a text/plain body")
	flags.IntVar(&options.ingestStatus, "ingest-status", 0, "answer /ingest with this status")
	if err := parseFlags(flags, args, false); err != nil {
		return options, err
	}
	options.delay = time.Duration(*delay) * time.Millisecond
	for name, status := range map[string]int{"push-status": options.pushStatus, "ingest-status": options.ingestStatus} {
		if status != 0 && (status < 200 || status > 999) {
			return options, usagef("server: --%s wants a final status", name)
		}
	}
	if options.pushStatus != 0 && (options.code != 0 || options.partial) {
		return options, usagef("server: --push-status excludes --code and --partial")
	}
	if options.partial && options.code == 0 {
		options.code = connect.CodeInvalidArgument
	}
	options.message = cmp.Or(options.message, "interop says "+options.code.String())
	return options, nil
}

// serve owns the listener and returns when ctx ends or the listener fails.
func serve(ctx context.Context, listener net.Listener, options serverOptions, out *lines) error {
	destination := &destination{options: options, out: out}
	mux := http.NewServeMux()
	_, handler := pushv1connect.NewPusherServiceHandler(destination, connect.WithReadMaxBytes(bodyBytesMax))
	mux.Handle(pushv1connect.PusherServicePushProcedure, destination.aroundPush(handler))
	mux.HandleFunc("/ingest", destination.ingest)
	mux.HandleFunc("/", destination.other)

	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler: mux, Protocols: protocols,
		ReadTimeout: requestTimeout + options.delay, WriteTimeout: requestTimeout + options.delay, IdleTimeout: requestTimeout,
	}
	if err := out.print(map[string]any{"event": eventListening, "addr": listener.Addr().String()}); err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if server.Shutdown(grace) != nil {
		// A request is still being delayed; whoever closed us does not want its answer.
		_ = server.Close()
	}
	return out.print(map[string]any{
		"event": eventEnd, "pushes": destination.pushes.Load(), "ingests": destination.ingests.Load(),
		"peers": destination.peerCount(),
	})
}

// destination is the handler of both routes.
type destination struct {
	options serverOptions
	out     *lines
	pushes  atomic.Int64
	ingests atomic.Int64
	peers   sync.Map // of remote addresses
}

// arrival travels in the context from aroundPush to Push.
type arrival struct {
	line    requestLine
	body    *tally
	reached bool // the handler, which prints the line itself
}

type arrivalKey struct{}

// aroundPush gives connect-go's handler the request as it is, and prints a
// line for those that connect-go refuses by itself.
func (d *destination) aroundPush(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := d.pushes.Add(1)
		arrived := d.arrive(w, r, eventPush, n)
		if d.options.protoOnly && r.Header.Get("Content-Type") != "application/proto" {
			w.Header().Set("Accept-Post", "application/proto")
			w.WriteHeader(http.StatusUnsupportedMediaType)
			d.refused(arrived, http.StatusUnsupportedMediaType)
			return
		}
		if d.options.pushStatus != 0 && d.inForce(n) {
			d.pushPlainly(w, r, arrived)
			return
		}
		recorded := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		handler.ServeHTTP(recorded, r.WithContext(context.WithValue(r.Context(), arrivalKey{}, arrived)))
		if !arrived.reached {
			d.refused(arrived, recorded.status)
		}
	})
}

// Push is the real handler; connect-go has decoded the message.
func (d *destination) Push(
	ctx context.Context, request *connect.Request[pushv1.PushRequest],
) (*connect.Response[pushv1.PushResponse], error) {
	arrived, ok := ctx.Value(arrivalKey{}).(*arrival)
	if !ok {
		return nil, connect.NewError(connect.CodeInternal, errors.New("interop: no arrival in the context"))
	}
	arrived.reached = true
	misbehave := d.inForce(arrived.line.N)
	answer := "ok"
	if misbehave && d.options.code != 0 {
		answer = d.options.code.String()
	}
	d.printPush(arrived, request.Peer().Protocol, request.Msg, answer)
	if misbehave {
		if err := d.wait(ctx, "push", arrived.line.N); err != nil {
			return nil, err
		}
		if d.options.code != 0 {
			return nil, d.connectError()
		}
	}
	return connect.NewResponse(&pushv1.PushResponse{}), nil
}

func (d *destination) connectError() error {
	failure := connect.NewError(d.options.code, errors.New(d.options.message))
	if d.options.retryAfter != "" {
		failure.Meta().Set("Retry-After", d.options.retryAfter)
	}
	if d.options.details {
		if detail, err := connect.NewErrorDetail(durationpb.New(time.Second)); err == nil {
			failure.AddDetail(detail)
		}
	}
	return failure
}

// pushPlainly answers as a proxy in front of Pyroscope would: no Connect, no JSON.
func (d *destination) pushPlainly(w http.ResponseWriter, r *http.Request, arrived *arrival) {
	message, err := readPlainPush(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		d.refused(arrived, http.StatusBadRequest)
		return
	}
	d.printPush(arrived, "connect", message, fmt.Sprintf("http %d", d.options.pushStatus))
	if d.wait(r.Context(), "push", arrived.line.N) != nil {
		return
	}
	d.answerPlainly(w, d.options.pushStatus)
}

// readPlainPush decodes what a Connect unary client sends: application/proto, gzip or not.
func readPlainPush(r *http.Request) (*pushv1.PushRequest, error) {
	if r.Header.Get("Content-Type") != "application/proto" {
		return nil, errors.New("interop: --push-status decodes application/proto only")
	}
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		inflated, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, err
		}
		body = inflated
	}
	var encoded bytes.Buffer
	if n, err := io.Copy(&encoded, io.LimitReader(body, bodyBytesMax+1)); err != nil || n > bodyBytesMax {
		return nil, cmp.Or(err, errors.New("interop: the push is too large"))
	}
	message := &pushv1.PushRequest{}
	return message, proto.Unmarshal(encoded.Bytes(), message)
}

func (d *destination) printPush(arrived *arrival, protocol string, message *pushv1.PushRequest, answer string) {
	line := pushLine{
		requestLine: arrived.complete(), Protocol: protocol, Series: describe(message.GetSeries()),
		LabelsSorted: []bool{}, Accepted: []int{}, Answer: answer,
	}
	for i, one := range line.Series {
		line.LabelsSorted = append(line.LabelsSorted, sorted(one.Labels))
		if answer == "ok" || (answer == d.options.code.String() && d.options.partial && i%2 == 0) {
			line.Accepted = append(line.Accepted, i)
		}
	}
	d.print(line)
}

func (d *destination) ingest(w http.ResponseWriter, r *http.Request) {
	n := d.ingests.Add(1)
	arrived := d.arrive(w, r, eventIngest, n)
	line := ingestLine{Params: r.URL.Query(), ContentType: r.Header["Content-Type"], Status: http.StatusOK}
	if line.ContentType == nil {
		line.ContentType = []string{}
	}
	if d.inForce(n) && d.options.ingestStatus != 0 {
		line.Status = d.options.ingestStatus
	}
	if r.Method != http.MethodPost {
		line.Status = http.StatusMethodNotAllowed
	} else if _, err := io.Copy(io.Discard, r.Body); err != nil {
		line.Status = http.StatusRequestTimeout
	}
	line.requestLine = arrived.complete()
	d.print(line)
	if d.inForce(n) && d.wait(r.Context(), "ingest", n) != nil {
		return
	}
	d.answerPlainly(w, line.Status)
}

func (d *destination) other(w http.ResponseWriter, r *http.Request) {
	d.refused(d.arrive(w, r, eventOther, 0), http.StatusNotFound)
	http.NotFound(w, r)
}

func (d *destination) answerPlainly(w http.ResponseWriter, status int) {
	if status == http.StatusOK {
		w.WriteHeader(status)
		return
	}
	if d.options.retryAfter != "" {
		w.Header().Set("Retry-After", d.options.retryAfter)
	}
	http.Error(w, "interop says "+strconv.Itoa(status), status)
}

// inForce says whether request n still gets the behaviour of the flags.
func (d *destination) inForce(n int64) bool {
	return d.options.times == 0 || n <= d.options.times
}

// wait delays the answer; an error means that nobody waits for it any more.
func (d *destination) wait(ctx context.Context, route string, n int64) error {
	if d.options.delay == 0 {
		return nil
	}
	timer := time.NewTimer(d.options.delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
	}
	reason := "left"
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		reason = "deadline"
	}
	d.print(goneLine{Event: eventGone, Route: route, N: n, Reason: reason})
	return ctx.Err()
}

// arrive describes the request as far as its head goes and starts to count its body.
func (d *destination) arrive(w http.ResponseWriter, r *http.Request, event string, n int64) *arrival {
	d.peers.Store(r.RemoteAddr, struct{}{})
	body := newTally(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	r.Body = body
	return &arrival{body: body, line: requestLine{
		Event: event, N: n, Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Proto: r.Proto, Host: r.Host,
		Headers: r.Header.Clone(), ContentLength: r.ContentLength,
		TransferEncoding: append([]string{}, r.TransferEncoding...), Peer: r.RemoteAddr,
	}}
}

// complete adds the body, as far as it was read.
func (a *arrival) complete() requestLine {
	a.line.BodyBytes, a.line.BodySHA256 = a.body.sum()
	return a.line
}

func (d *destination) refused(arrived *arrival, status int) {
	line := arrived.complete()
	if line.Event == eventPush {
		line.Event = eventRefused
	}
	d.print(refusedLine{requestLine: line, Status: status})
}

// print has nobody to tell when standard output is gone: then standard input
// is too, and the server ends.
func (d *destination) print(line any) { _ = d.out.print(line) }

func (d *destination) peerCount() int {
	count := 0
	d.peers.Range(func(any, any) bool {
		count++
		return true
	})
	return count
}

// statusWriter remembers the status. It flushes, because gRPC must.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (s *statusWriter) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

func (s *statusWriter) Flush() {
	if flusher, ok := s.ResponseWriter.(http.Flusher); ok {
		flusher.Flush()
	}
}

func (s *statusWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }
