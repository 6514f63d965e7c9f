#!/bin/sh
# install.sh VENV PACKAGE...  installs into VENV with uv, or with pip where uv cannot be had.
# UV_FIND_LINKS hands uv the local wheel folders that pip is configured with.
set -eu
venv=$1; shift
export UV_FIND_LINKS="${UV_FIND_LINKS:-$(printf %s "${PIP_FIND_LINKS:-}" | tr ' ' ',')}"
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}" PIP_DISABLE_PIP_VERSION_CHECK=1
[ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS
if "$venv/bin/python" -m uv --version >/dev/null 2>&1 || "$venv/bin/python" -m pip install -q uv 2>/dev/null
then exec "$venv/bin/python" -m uv pip install -q --python "$venv/bin/python" "$@"
else echo "   uv cannot be had here; installing with pip" >&2; exec "$venv/bin/python" -m pip install -q "$@"
fi
