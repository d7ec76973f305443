#!/bin/sh
# Makes the root file system of the local base image; runs inside a fresh debootstrap of Debian.
set -eu

# Security updates from the mirror that debootstrap was given; a mirror that does not carry them is used without.
read -r _ mirror release _ < /etc/apt/sources.list
cat > /etc/apt/sources.list <<LIST
deb $mirror $release main
deb $mirror $release-updates main
deb ${mirror%/}-security $release-security main
LIST
if ! apt-get update --quiet --error-on=any; then
  echo "deb $mirror $release main" > /etc/apt/sources.list
  apt-get update --quiet
fi

# Documentation and translations are of no use in an image, now and in every package installed later.
cat > /etc/dpkg/dpkg.cfg.d/image <<'EXCLUDE'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
EXCLUDE
# Services are never started while an image is built.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d

export DEBIAN_FRONTEND=noninteractive
apt-get upgrade --quiet --yes
apt-get install --quiet --yes --no-install-recommends ca-certificates netbase tzdata python3 python3-pip

# The names by which the official image's Python is called.
ln -s /usr/bin/python3 /usr/local/bin/python3
ln -s python3 /usr/local/bin/python
ln -s /usr/bin/pip3 /usr/local/bin/pip

find /usr/share/doc -mindepth 2 ! -name copyright ! -type d -delete
rm -rf /usr/share/man/* /usr/share/info/* /usr/share/locale/* /var/lib/apt/lists/* /var/cache/* /var/log/* /tmp/*
mkdir -p /var/cache/apt/archives/partial /var/log/apt
