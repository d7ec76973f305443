//go:build tools

// Package minio pins MinIO's last community release, whose program is built from that module's own main package.
package minio

import _ "github.com/minio/minio"
