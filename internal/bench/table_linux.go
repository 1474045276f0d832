package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// A result is one line of the table.
type result struct {
	Row     string   `json:"row"`
	Figure  string   `json:"figure"`
	Ours    float64  `json:"ours"`
	Floor   *float64 `json:"floor,omitempty"`
	Ratio   *float64 `json:"ratio,omitempty"`
	AtLeast float64  `json:"at_least"`
	Aim     float64  `json:"aim"`
	Reached string   `json:"reached"` // aim, least or no

	goal goal
}

// compare makes a line of the medians of all runs.
func compare(r row, f figure, ours, floor []sample) result {
	res := result{Row: r.name, Figure: f.name, Ours: median(ours, f.key), AtLeast: f.goal.atLeast, Aim: f.goal.aim, goal: f.goal}
	reached := res.Ours
	if len(floor) > 0 {
		m := median(floor, f.key)
		res.Floor = &m
		if m != 0 && f.goal.times {
			ratio := res.Ours / m
			res.Ratio, reached = &ratio, ratio
		}
	}
	meets := func(goal float64) bool {
		if f.goal.times && res.Ratio == nil {
			return false
		}
		if f.goal.more {
			return reached >= goal
		}
		return reached <= goal
	}
	switch {
	case meets(f.goal.aim):
		res.Reached = "aim"
	case meets(f.goal.atLeast):
		res.Reached = "least"
	default:
		res.Reached = "no"
	}
	return res
}

func median(samples []sample, key string) float64 {
	var values []float64
	for _, s := range samples {
		values = append(values, s[key])
	}
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

const tableLine = "%-11s %-25s %10s %10s %7s  %-18s %s\n"

func printHeading(w io.Writer) {
	fmt.Fprintf(w, tableLine, "row", "figure", "ours", "floor", "ratio", "goal: least / aim", "reached")
}

func (r result) print(w io.Writer, asJSON bool) {
	if asJSON {
		json.NewEncoder(w).Encode(r)
		return
	}
	floor, ratio := "-", "-"
	if r.Floor != nil {
		floor = digits(*r.Floor)
	}
	if r.Ratio != nil {
		ratio = strconv.FormatFloat(*r.Ratio, 'f', 2, 64) + "x"
	}
	fmt.Fprintf(w, tableLine, r.Row, r.Figure, digits(r.Ours), floor, ratio, r.goal, r.Reached)
}

// String is the goal as "at least / aim".
func (g goal) String() string {
	switch {
	case g.times:
		return fmt.Sprintf("%gx / %gx", g.atLeast, g.aim)
	case g.atLeast == 0 && g.aim == 0:
		return "none"
	}
	return fmt.Sprintf("%g / %g %s", g.atLeast, g.aim, g.unit)
}

// digits keeps three digits, or all before the point.
func digits(x float64) string {
	switch {
	case x >= 100 || x <= -100 || x == 0:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10 || x <= -10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}
