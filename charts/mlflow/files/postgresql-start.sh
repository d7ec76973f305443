#!/bin/sh
# Starts PostgreSQL with the roles and databases this system needs. What exists is kept; passwords follow the Secrets at every
# start, so that rotating one is: change the Secret, restart the pod.
set -eu

# Made beside its final place and then renamed: an interrupted start leaves nothing that looks like a database.
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  rm -rf "$PGDATA.new"
  initdb --pgdata="$PGDATA.new" --username=postgres --auth=reject --encoding=UTF8 --locale=C.UTF-8 --data-checksums
  mv -T "$PGDATA.new" "$PGDATA"
fi
# The kubelet opens a volume to its group (fsGroup); PostgreSQL refuses a folder that others can write.
chmod 0700 "$PGDATA"

# Nobody can connect over the network before roles and databases are there: this server listens on its socket alone, which
# is in the container's own /tmp, and asks no password there, so that a changed password can be set.
pg_ctl start --pgdata="$PGDATA" --wait --timeout=600 --silent --options="-c config_file=/etc/postgresql/postgresql.conf \
-c hba_file=/etc/postgresql/pg_hba_preparation.conf -c listen_addresses=''"
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username=postgres --dbname=postgres --file=/etc/postgresql/roles.sql
pg_ctl stop --pgdata="$PGDATA" --wait --timeout=600 --mode=fast --silent

exec postgres -D "$PGDATA" -c config_file=/etc/postgresql/postgresql.conf
