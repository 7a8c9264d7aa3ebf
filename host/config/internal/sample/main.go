// Command sample writes the sample configuration file.
package main

import (
	"fmt"
	"os"

	"cephmirror/host/config"
)

func main() {
	if err := os.WriteFile(os.Args[1], []byte(config.Sample()), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
