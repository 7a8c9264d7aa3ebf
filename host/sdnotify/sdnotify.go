// Package sdnotify tells the service manager how the daemon is: that it serves,
// what it does at the moment, that it is alive, that it stops. Where no service
// manager asked for it, nothing is told.
package sdnotify

import (
	"context"
	"fmt"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
)

// statusInterval is how often the status line is looked at when there is no
// watchdog that wants to hear more often.
const statusInterval = 5 * time.Second

// Ready says that the daemon serves.
func Ready() error { return tell(sd.SdNotifyReady) }

// Stopping says that it is on its way out.
func Stopping() error { return tell(sd.SdNotifyStopping) }

func tell(state string) error {
	if _, err := sd.SdNotify(false, state); err != nil {
		return fmt.Errorf("telling the service manager %q: %w", state, err)
	}
	return nil
}

// Run keeps the service manager informed until ctx ends: of the line that status
// returns whenever it is another one, and, when a watchdog is set, that the
// daemon is alive. A status that does not return leaves the watchdog to bite.
func Run(ctx context.Context, log zerolog.Logger, status func() string) {
	interval := statusInterval
	watchdog, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn().Err(err).Msg("the service manager's watchdog interval cannot be read")
	}
	if watchdog > 0 {
		interval = min(interval, watchdog/3)
	}
	t := time.NewTicker(interval)
	defer t.Stop()
	last := ""
	for {
		line := status()
		message := ""
		if line != last {
			message, last = "STATUS="+line+"\n", line
		}
		if watchdog > 0 {
			message += sd.SdNotifyWatchdog
		}
		if message != "" {
			if err := tell(message); err != nil {
				log.Debug().Err(err).Msg("service manager")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
