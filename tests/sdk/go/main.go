// Command client is a small Go service profiled by the real Pyroscope SDK.
//
// It burns CPU and allocates for SDK_SECONDS while the SDK uploads to
// PYROSCOPE_SERVER_ADDRESS, then flushes, stops and leaves with 0. Everything
// the SDK has to say goes to stderr; a line with [ERROR] is a failed upload.
// Judging the uploads is the work of whoever listens at the address.
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/grafana/pyroscope-go"
)

// The SDK sets no lower bound. One second gives two rounds of uploads within
// three seconds and stays far below its queue of 20.
const uploadInterval = time.Second

func main() {
	address := os.Getenv("PYROSCOPE_SERVER_ADDRESS")
	if address == "" {
		refuse("PYROSCOPE_SERVER_ADDRESS is not set")
	}
	seconds, err := runSeconds()
	if err != nil {
		refuse(err.Error())
	}
	profiler, err := pyroscope.Start(pyroscope.Config{
		ApplicationName: "sdk.go",
		ServerAddress:   address,
		UploadRate:      uploadInterval,
		Logger:          stderrLogger{},
		Tags:            map[string]string{"region": "eu", "lang": "go"},
	})
	if err != nil {
		refuse(err.Error())
	}
	work(time.Now().Add(time.Duration(seconds) * time.Second))
	// Stop ends the uploaders with jobs still in their queue, so flush first.
	profiler.Flush(true)
	if err := profiler.Stop(); err != nil {
		refuse(err.Error())
	}
}

// work keeps one thread busy and a few hundred kilobytes alive until deadline.
func work(deadline time.Time) {
	kept := make([][]byte, 64)
	for round := 0; time.Now().Before(deadline); round++ {
		block := make([]byte, 16<<10)
		sum := sha256.Sum256(block)
		copy(block, sum[:])
		kept[round%len(kept)] = block
	}
}

func runSeconds() (int, error) {
	text, set := os.LookupEnv("SDK_SECONDS")
	if !set {
		return 25, nil
	}
	seconds, err := strconv.Atoi(text)
	if err != nil || seconds < 1 {
		return 0, fmt.Errorf("SDK_SECONDS=%q is not a whole number of seconds from 1", text)
	}
	return seconds, nil
}

func refuse(why string) {
	fmt.Fprintf(os.Stderr, "[ERROR] %s\n", why)
	os.Exit(2)
}

// stderrLogger is the SDK's StandardLogger, but on stderr.
type stderrLogger struct{}

func (stderrLogger) Infof(format string, args ...interface{})  { line("INFO", format, args) }
func (stderrLogger) Debugf(format string, args ...interface{}) { line("DEBUG", format, args) }
func (stderrLogger) Errorf(format string, args ...interface{}) { line("ERROR", format, args) }

func line(level, format string, args []interface{}) {
	fmt.Fprintf(os.Stderr, "["+level+"] "+format+"\n", args...)
}
