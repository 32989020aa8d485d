// This file is responsible for what the tests share: a destination in this
// process whose lines are read one by one, each with a deadline.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

const testDeadline = 20 * time.Second

// anyLine holds every field that a line of the server can have.
type anyLine struct {
	pushLine
	Addr    string              `json:"addr"`
	Params  map[string][]string `json:"params"`
	Type    []string            `json:"content_type"`
	Status  int                 `json:"status"`
	Route   string              `json:"route"`
	Reason  string              `json:"reason"`
	Pushes  int64               `json:"pushes"`
	Ingests int64               `json:"ingests"`
	Peers   int                 `json:"peers"`
}

type testServer struct {
	addr  string
	lines chan anyLine
}

// startServer runs the destination until the test ends.
func startServer(t *testing.T, options serverOptions) *testServer {
	t.Helper()
	listener := listen(t)
	reader, writer := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- serve(ctx, listener, options, newLines(writer))
		_ = writer.Close()
	}()
	server := &testServer{lines: readLines(reader)}
	t.Cleanup(func() {
		cancel()
		for range server.lines { // let the server print what it still has to say
		}
		if err := <-ended; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	server.addr = server.next(t, eventListening).Addr
	return server
}

func readLines(reader io.Reader) chan anyLine {
	read := make(chan anyLine, 1024)
	go func() {
		defer close(read)
		scanner := bufio.NewScanner(reader)
		scanner.Buffer(nil, lineBytesMax)
		for scanner.Scan() {
			var line anyLine
			if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
				line.Event = "not JSON: " + scanner.Text()
			}
			read <- line
		}
	}()
	return read
}

// next is the next line, which must be of this event.
func (s *testServer) next(t *testing.T, event string) anyLine {
	t.Helper()
	select {
	case line, open := <-s.lines:
		if !open || line.Event != event {
			t.Fatalf("got the line %+v (open: %v), want event %q", line, open, event)
		}
		return line
	case <-time.After(testDeadline):
		t.Fatalf("no line within %s, want event %q", testDeadline, event)
	}
	return anyLine{}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func mustCase(t *testing.T, name string) clientCase {
	t.Helper()
	call, found := findCase(name)
	if !found {
		t.Fatalf("no case %q", name)
	}
	return call
}

// callCase calls addr with the defaults of the subcommand.
func callCase(addr string, call clientCase) clientLine {
	return callOnce(context.Background(), clientOptions{
		addr: baseURL(addr), call: call, timeout: 300 * time.Millisecond, deadline: testDeadline, header: http.Header{},
	})
}
