//go:build tools

// Package vegeta pins the load generator, whose program is built from that module's own main package.
package vegeta

import _ "github.com/tsenart/vegeta/v12"
