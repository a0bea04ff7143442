#!/bin/sh
# `docker run IMAGE run suite.yaml` and `docker run IMAGE normbench run suite.yaml` both work.
set -eu
[ "${1-}" = normbench ] && shift
exec normbench "$@"
