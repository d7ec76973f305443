//go:build tools

// Package versitygw pins the S3 gateway, whose program is built from that module's own main package.
package versitygw

import _ "github.com/versity/versitygw/cmd/versitygw"
