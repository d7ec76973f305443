#!/bin/sh
# Installs a hashed requirements file into /opt/venv, without what a server never opens, and compiles it.
#
# Usage: install-requirements.sh REQUIREMENTS, with lock.txt, which pins uv, beside it. Optional mounts of the build:
# /etc/pip.conf and /etc/uv/uv.toml (the user's package index), /run/certs/ca-certificates.crt (certificates that the
# user's machine trusts), /var/cache/packages (those of earlier builds; not ~/.cache, because buildah 1.28 empties the
# whole build stage when a mount's target is the beginning of the path of its own store).
set -eu
requirements=$1
lock=$(dirname "$requirements")/lock.txt
cache=/var/cache/packages
mkdir -p "$cache"

if [ -s /run/certs/ca-certificates.crt ]; then
  export PIP_CERT=/run/certs/ca-certificates.crt SSL_CERT_FILE=/run/certs/ca-certificates.crt
fi

# uv downloads and unpacks in parallel: docs/images.md compares it with pip. It stays outside of the image.
uv=$cache/uv-$(sha256sum "$lock" | cut -c 1-16)
if [ ! -x "$uv" ]; then
  scratch=$(mktemp -d)
  python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-cache-dir --no-compile \
    --target "$scratch" --require-hashes --only-binary :all: -r "$lock"
  cp "$scratch/bin/uv" "$uv.$$"
  mv "$uv.$$" "$uv"
  rm -rf "$scratch"
fi

# The file is exact and complete, so nothing is resolved again, and everything is a wheel, so nothing is compiled.
python -m venv --without-pip /opt/venv
UV_CACHE_DIR=$cache/uv UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never \
  "$uv" pip install --python /opt/venv/bin/python --require-hashes --no-deps --no-build -r "$requirements"

# Packages' own tests (not NumPy's and not Ray's: scipy and scikit-learn import numpy.testing, Ray some of its own), C
# headers, and Ray for Java and C++.
cd "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
for package in mlflow pandas pyarrow scipy sklearn; do
  if [ -d "$package" ]; then
    find "$package" -type d -name tests -prune -exec rm -rf {} +
  fi
done
rm -rf pyarrow/include pyarrow/src ray/cpp ray/jars

# Once, here, because the root file system is read-only later; never checked against the source again.
python -m compileall -q -j 0 --invalidation-mode unchecked-hash .
