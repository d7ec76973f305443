#!/bin/sh
# Writes the definitions RabbitMQ imports at boot, with password hashes in place of the passwords, and the Erlang cookie.
# A hash is base64(salt + SHA-256(salt + password)) with 4 bytes of salt, RabbitMQ's rabbit_password_hashing_sha256. Made with
# what every image has: `rabbitmqctl hash_password` would start an Erlang machine for each.
set -eu
umask 077

# bytes HEX: the bytes that HEX names, on standard output.
bytes() {
  hex=$1
  while [ -n "$hex" ]; do
    rest=${hex#??}
    printf "\\$(printf '%03o' "0x${hex%"$rest"}")"
    hex=$rest
  done
}

# hash PASSWORD: its salted hash in base64.
hash() {
  salt=$(od -An -N4 -tx1 /dev/urandom | tr -d ' \n')
  digest=$({ bytes "$salt"; printf '%s' "$1"; } | sha256sum | cut -d ' ' -f 1)
  bytes "$salt$digest" | base64 | tr -d '\n'
}

# Base64 has no character that is special to sed but `/`, hence `|`.
sed -e "s|@admin-password-hash@|$(hash "$ADMIN_PASSWORD")|" \
    -e "s|@training-password-hash@|$(hash "$TRAINING_PASSWORD")|" \
    -e "s|@serving-password-hash@|$(hash "$SERVING_PASSWORD")|" \
    /etc/rabbitmq/template/definitions.json > /etc/rabbitmq/definitions/definitions.json

# Erlang accepts the cookie only from a file that nobody else can read.
rm -f /var/lib/rabbitmq/.erlang.cookie
printf '%s' "$ERLANG_COOKIE" > /var/lib/rabbitmq/.erlang.cookie
chmod 0400 /var/lib/rabbitmq/.erlang.cookie
