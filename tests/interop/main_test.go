// This file is responsible for the process as the Rust test sees it: argv in,
// lines and an exit code out, and an end that always comes.
package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
)

func TestExitCodes(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		code int
	}{
		"nothing":            {nil, exitUsage},
		"unknown subcommand": {[]string{"dance"}, exitUsage},
		"unknown flag":       {[]string{"client", "--bogus"}, exitUsage},
		"help":               {[]string{"client", "-h"}, exitUsage},
		"unknown case":       {[]string{"client", "--addr", "127.0.0.1:1", "--case", "bogus"}, exitUsage},
		"unknown wire":       {[]string{"client", "--addr", "127.0.0.1:1", "--case", "empty", "--wire", "smoke"}, exitUsage},
		"no address":         {[]string{"client", "--case", "empty"}, exitUsage},
		"bad header":         {[]string{"client", "--header", "no colon"}, exitUsage},
		"bad external":       {[]string{"client", "--external", "novalue"}, exitUsage},
		"unknown code":       {[]string{"server", "--code", "teapot"}, exitUsage},
		"no series on stdin": {[]string{"client", "--addr", "127.0.0.1:1", "--case", "stdin"}, exitFailure},
		"list":               {[]string{"client", "--list"}, exitOK},
		"query":              {[]string{"query"}, exitOK},
		"reference":          {[]string{"reference"}, exitOK},
		"decode":             {[]string{"decode"}, exitOK},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if got := run(t.Context(), test.args, strings.NewReader(""), &stdout, &stderr); got != test.code {
				t.Errorf("exit %d, want %d: %s", got, test.code, stderr.String())
			}
			if (test.code == exitOK) != (stderr.Len() == 0) {
				t.Errorf("standard error: %q", stderr.String())
			}
		})
	}
}

// TestLife blocks every subcommand that reads, and each must end all the same.
func TestLife(t *testing.T) {
	for _, name := range []string{"server", "reference", "query", "decode"} {
		reader, writer := io.Pipe()
		code := run(t.Context(), []string{"--life", "50ms", name}, reader, io.Discard, io.Discard)
		_ = writer.Close()
		if code != exitLife {
			t.Errorf("%s: exit %d, want %d", name, code, exitLife)
		}
	}
}

func TestServerProcess(t *testing.T) {
	stdin, holdStdin := io.Pipe()
	stdout, serverStdout := io.Pipe()
	exit := make(chan int, 1)
	go func() {
		exit <- run(t.Context(), []string{"server", "--code", "unavailable", "--times", "1"}, stdin, serverStdout, io.Discard)
		_ = serverStdout.Close()
	}()
	server := &testServer{lines: readLines(stdout)}
	addr := server.next(t, eventListening).Addr
	for _, want := range []string{`"code":"unavailable"`, `"code":"ok"`} {
		var printed bytes.Buffer
		if code := run(t.Context(), []string{"client", "--addr", addr, "--case", "connect-json"}, strings.NewReader(""), &printed, io.Discard); code != exitOK {
			t.Errorf("the client exits %d", code)
		}
		if got := printed.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, want) {
			t.Errorf("the client prints %s, want %s", got, want)
		}
		server.next(t, eventPush)
	}
	_ = holdStdin.Close()
	if end := server.next(t, eventEnd); end.Pushes != 2 || end.Peers != 2 {
		t.Errorf("end %+v", end)
	}
	select {
	case code := <-exit:
		if code != exitOK {
			t.Errorf("the server exits %d", code)
		}
	case <-time.After(testDeadline):
		t.Error("the server outlives its standard input")
	}
}

func TestLinesAreWholeAndUnescaped(t *testing.T) {
	var output bytes.Buffer
	if err := newLines(&output).print("<&>\n"); err != nil {
		t.Fatal(err)
	}
	if got := output.String(); got != "\"<&>\\n\"\n" {
		t.Errorf("got %q", got)
	}
}

func TestLineTooLongIsAnError(t *testing.T) {
	endless := io.LimitReader(zeros{}, lineBytesMax+1)
	if err := queryCommand(t.Context(), nil, endless, newLines(io.Discard)); err == nil {
		t.Error("a line beyond the bound was accepted")
	}
}

// zeros is a line that never ends.
type zeros struct{}

func (zeros) Read(into []byte) (int, error) {
	for i := range into {
		into[i] = '0'
	}
	return len(into), nil
}
