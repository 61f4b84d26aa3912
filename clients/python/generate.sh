#!/bin/sh
# Generates the client's code into gen/, which git ignores. google/* comes with googleapis-common-protos.
set -eu
cd "$(dirname "$0")"
root=../..
rm -rf gen && mkdir gen
.venv/bin/python -m grpc_tools.protoc -I "$root/proto" -I "$root/third_party/proto" \
	--python_out=gen --pyi_out=gen --grpc_python_out=gen \
	"$root"/proto/jelou/facade/v1/*.proto "$root"/third_party/proto/buf/validate/validate.proto
