#!/bin/sh
# Makes the secrets of compose.yaml in local/, once: what is there stays. Needs a shell and what every system has.
#
#   sh prepare.sh [FOLDER]
set -eu
umask 022
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/local}

if [ -e "$folder" ]; then
	echo "$folder is there already; remove it for new secrets, and the volume with the ledger, whose password is in it"
	exit 0
fi
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -c1-64; }

# Only the owner reaches what is below, and containers read it as users of their own.
making=$folder.new
rm -rf "$making"
mkdir -m 700 "$making"
mkdir -p "$making/facade/secrets"
password=$(secret)
key=$(secret)
printf %s "$password" >"$making/postgres-password"
printf %s "$(secret)" >"$making/grafana-password"
printf %s "$key" >"$making/caller-key"
printf 'postgres:5432:facade:facade:%s\n' "$password" >"$making/facade/secrets/pgpass"
echo sandbox >"$making/facade/secrets/jelou-client-id"
echo sandbox >"$making/facade/secrets/jelou-client-secret"
sed "s/KEY_SHA256/$(printf %s "$key" | sha256)/" "$here/facade.yaml" >"$making/facade/facade.yaml"
mv "$making" "$folder"

cat <<END
secrets are in $folder

  docker compose up --build --wait
  curl -s http://127.0.0.1:8080/v1/bots/demo/messages -H "x-api-key: \$(cat $folder/caller-key)" -H 'Content-Type: application/json' \\
    -d '{"user_id": "593991234567", "message": {"text": {"text": "Su pedido 8841 salió de bodega."}}, "request_id": "order-8841"}'
  http://127.0.0.1:3000 is Grafana, user admin, password in $folder/grafana-password
END
