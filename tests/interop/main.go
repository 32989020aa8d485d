// Command interop is the real Connect implementation at both ends of a
// conversation with pyrotee, driven by a Rust test over argv and JSON lines.
//
// This file is responsible for choosing the subcommand and for the two bounds
// that hold for all of them: the life of the process and the length of an
// input line. It knows nothing about pushes.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// Exit codes of the process.
const (
	exitOK      = 0 // every answer was printed, also when it says that a call failed
	exitFailure = 1 // our own failure: a socket, standard input, standard output
	exitUsage   = 2 // the arguments are wrong
	exitLife    = 3 // --life ran out
)

const (
	lifeDefault  = 5 * time.Minute
	lineBytesMax = 64 << 20 // one input line; more than the largest push a test describes in base64
)

// subcommand reads its own arguments and stdin and prints JSON lines.
type subcommand func(ctx context.Context, args []string, stdin io.Reader, out *lines) error

var subcommands = map[string]subcommand{
	"client":    clientCommand,
	"server":    serverCommand,
	"reference": referenceCommand,
	"query":     queryCommand,
	"decode":    decodeCommand,
}

// usageError is a mistake in the arguments, told apart so that it exits 2.
type usageError struct{ error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// run is main without the process: it returns the exit code.
//
// The subcommand runs beside the timer, because one that is blocked reading
// standard input cannot be cancelled; the process ends all the same.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := newFlags("interop")
	life := flags.Duration("life", lifeDefault, "the process ends after this time, whatever it is doing")
	if err := parseFlags(flags, args, true); err != nil {
		return report(stderr, err)
	}
	if flags.NArg() == 0 {
		return report(stderr, usagef("which subcommand? client, server, reference, query or decode"))
	}
	command, known := subcommands[flags.Arg(0)]
	if !known {
		return report(stderr, usagef("unknown subcommand %q", flags.Arg(0)))
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- command(ctx, flags.Args()[1:], stdin, newLines(stdout)) }()

	timer := time.NewTimer(*life)
	defer timer.Stop()
	select {
	case err := <-done:
		return report(stderr, err)
	case <-timer.C:
		fmt.Fprintf(stderr, "interop: --life %s ran out\n", *life)
		return exitLife
	}
}

// newFlags is a flag set that reports through its error only.
func newFlags(name string) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	return flags
}

// parseFlags refuses what is left over, unless a subcommand may follow.
func parseFlags(flags *flag.FlagSet, args []string, restAllowed bool) error {
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return usagef("see README.md for the flags of %s", flags.Name())
		}
		return usageError{err}
	}
	if !restAllowed && flags.NArg() > 0 {
		return usagef("%s: unexpected argument %q", flags.Name(), flags.Arg(0))
	}
	return nil
}

func report(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "interop: %v\n", err)
	if _, usage := errors.AsType[usageError](err); usage {
		return exitUsage
	}
	return exitFailure
}

// lines writes one JSON value per line, whole lines only, from any goroutine.
type lines struct {
	mu      sync.Mutex
	encoder *json.Encoder
}

func newLines(w io.Writer) *lines {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return &lines{encoder: encoder}
}

func (l *lines) print(value any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.encoder.Encode(value)
}

// eachLine calls answer for every input line that is not blank and prints what
// it returns, so that line k of the output belongs to line k of the input.
func eachLine(ctx context.Context, stdin io.Reader, out *lines, answer func([]byte) any) error {
	scanner := bufio.NewScanner(stdin)
	scanner.Buffer(nil, lineBytesMax)
	for scanner.Scan() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(scanner.Bytes()) == 0 {
			continue
		}
		if err := out.print(answer(scanner.Bytes())); err != nil {
			return err
		}
	}
	return scanner.Err()
}

// inputError is the answer to an input line that is not what was asked for. It
// marks a mistake in the caller, never a verdict of an oracle.
type inputError struct {
	InputError string `json:"input_error"`
}
