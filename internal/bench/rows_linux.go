package main

// A row is one load and what it is to show.
type row struct {
	name    string
	ours    load
	floor   *load // what ours is compared with, if anything
	figures []figure
}

// A load is something to run on a server of a kind.
type load struct {
	server string // server, floor or floor-batch
	run    func(*bed) (sample, error)
}

// What a load may run on.
const (
	theServer     = "server"
	theFile       = "file" // the server, which keeps the events in a file
	theFloor      = "floor"
	theBatchFloor = "floor-batch"
)

// A figure is something that was measured, and its goal.
type figure struct {
	name string
	key  string // in the sample
	goal goal
}

// A goal is what a figure must reach at least, and what it aims at.
type goal struct {
	atLeast, aim float64
	times        bool   // both are a ratio to the floor, not the figure itself
	more         bool   // more is better
	unit         string // of both, if they are not a ratio
}

// times is a goal for what a figure may be at most, against the floor.
func times(atLeast, aim float64) goal { return goal{atLeast: atLeast, aim: aim, times: true} }

// timesMore is a goal for what a figure has to be, against the floor.
func timesMore(atLeast, aim float64) goal {
	return goal{atLeast: atLeast, aim: aim, times: true, more: true}
}

// upTo is a goal for what a figure may be at most.
func upTo(atLeast, aim float64, unit string) goal {
	return goal{atLeast: atLeast, aim: aim, unit: unit}
}

// rows are all that can be measured, in the order of the table.
func rows() []row {
	oneThousand := fanout{channels: 1, consumers: 1000, publishers: 1, rate: 100, size: 100}
	tenThousand := fanout{channels: 1, consumers: 10000, publishers: 1, rate: 10, size: 100}
	window := fanout{channels: 1, consumers: 1000, publishers: 1, window: 8, size: 100}
	channels := fanout{channels: 1000, consumers: 5, publishers: 16, size: 100}
	everyone := fanout{channels: 10000, consumers: 1, publishers: 1, rate: 5, size: 100, everyone: true}
	alone := fanout{channels: 1, consumers: 1000, publishers: 1, rate: 50, size: 1000, stretch: 2}
	beside := alone
	beside.stalled = 1000

	return []row{
		against("idle", theFloor, runIdle,
			figure{"private bytes a consumer", "bytes", upTo(512, 256, "bytes")},
			figure{"CPU us a connect", "cpu a connect", times(3.5, 2.75)}),
		against("fanout-1k", theFloor, oneThousand.run,
			figure{"CPU us a delivery", "cpu a delivery", times(1.15, 1.05)},
			figure{"p50 ms", "p50", times(1.3, 1)},
			figure{"p99 ms", "p99", times(1.3, 1)}),
		against("fanout-10k", theFloor, tenThousand.run,
			figure{"CPU us a delivery", "cpu a delivery", times(1.15, 1.05)},
			figure{"p99 ms", "p99", times(1.2, 1)},
			figure{"peak MB over idle", "peak", upTo(16, 8, "MB")}),
		against("window", theBatchFloor, window.run,
			figure{"deliveries a second", "deliveries", timesMore(0.7, 0.9)}),
		against("channels", theFloor, channels.run,
			figure{"publishes a second", "publishes", timesMore(0.85, 0.95)},
			figure{"CPU us a publish", "cpu a publish", times(1.3, 1.1)}),
		against("churn", theFloor, runChurn,
			figure{"CPU us a connect", "cpu a connect", times(2.2, 1.75)},
			// None, that is: some pages come and go, also after 100,000 connects.
			figure{"MB grown in the 2nd half", "growth", upTo(0.5, 0.5, "MB")}),
		withoutFloor("ndjson-1", lines{consumers: 1}.run,
			figure{"CPU us an event", "cpu a delivery", upTo(6, 3, "us")},
			figure{"lost events", "loss", upTo(0, 0, "")}),
		withoutFloor("ndjson-10", lines{consumers: 10, rate: 50000}.run,
			figure{"CPU us a delivery", "cpu a delivery", upTo(6, 3, "us")},
			figure{"lost events", "loss", upTo(0, 0, "")}),
		against("all", theFloor, everyone.run,
			figure{"CPU us a delivery", "cpu a delivery", times(1.3, 1.1)}),
		withoutFloor("resume", runResume,
			figure{"seconds", "seconds", upTo(2, 1, "s")},
			figure{"peak MB over idle", "peak", upTo(64, 32, "MB")},
			figure{"lost", "missing", upTo(0, 0, "")},
			figure{"duplicates", "duplicates", upTo(0, 0, "")},
			figure{"out of order", "disordered", upTo(0, 0, "")}),
		// What a publish waits for is the disk; a delivery costs what it costs without.
		{
			name:    "kept",
			ours:    load{theFile, oneThousand.runDeliveries},
			floor:   &load{theServer, oneThousand.runDeliveries},
			figures: []figure{{"CPU us a delivery", "cpu a delivery", times(1.1, 1)}},
		},
		// As resume, but the server is killed in between, and nothing is in its logs.
		{
			name: "restart",
			ours: load{theFile, runRestart},
			figures: []figure{
				{"seconds", "seconds", upTo(2, 1, "s")},
				{"peak MB over idle", "peak", upTo(64, 32, "MB")},
				{"lost", "missing", upTo(0, 0, "")},
				{"duplicates", "duplicates", upTo(0, 0, "")},
				{"out of order", "disordered", upTo(0, 0, "")},
			},
		},
		// Beside consumers that never read, against the same without them.
		{
			name:  "stalled",
			ours:  load{theServer, beside.run},
			floor: &load{theServer, alone.run},
			figures: []figure{
				{"CPU us a delivery", "cpu a delivery", times(1.2, 1.05)},
				{"p99 ms", "p99", times(1.2, 1.05)},
			},
		},
	}
}

// against is a row that runs the same load on the server and on a floor.
func against(name, floor string, run func(*bed) (sample, error), figures ...figure) row {
	return row{name, load{theServer, run}, &load{floor, run}, figures}
}

// withoutFloor is a row of which no floor exists.
func withoutFloor(name string, run func(*bed) (sample, error), figures ...figure) row {
	return row{name, load{theServer, run}, nil, figures}
}
