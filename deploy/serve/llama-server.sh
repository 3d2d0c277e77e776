#!/bin/sh
# A hook for llama-server, which cannot load a new file while it runs: starts a second one with the new version beside the old,
# and ends the old one when the new one answers. When the new one does not come up, the old one goes on and the hook fails, so that
# it is run again and the failure is reported.
#
#     LLAMA_BASE=/models/base.gguf LLAMA_STATE=/var/lib/llama alluvium subscribe --join server.join --follow stable \
#         --dir /var/lib/adapters --form gguf --hook ./llama-server.sh
#
#   LLAMA_BASE      the base, in any quantisation
#   LLAMA_STATE     a directory: `upstream` (address of the server to use), `pid`, `version`, `log`, `starting`
#   LLAMA_PORT      the first of two ports that take turns             [8080]
#   LLAMA_SERVER    the program                                       [llama-server]
#   LLAMA_OPTIONS   more of its options, split at spaces               [none]
#   LLAMA_SWITCH    run with the new address before the old one ends: move the proxy here    [nothing]
#   LLAMA_WAIT      seconds until a start has failed; --hook-timeout must be longer           [90]
set -eu
: "${LLAMA_BASE:?the base model, a GGUF file}" "${LLAMA_STATE:?a directory of this hook}"
port=${LLAMA_PORT:-8080} state=$LLAMA_STATE
mkdir -p "$state"
old_pid=$(cat "$state/pid" 2>/dev/null || true)
old=$(cat "$state/upstream" 2>/dev/null || true)

running() { # is $1 a server that this hook started on port $2?
    [ -n "$1" ] && tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -qF -- "--port $2 "
}

has() { # does the server at $1 answer, with this version's adapter?
    curl -sf -m 5 "$1/health" >/dev/null && curl -sf -m 5 "$1/lora-adapters" | grep -qF "$ALLUVIUM_GGUF"
}

if [ -n "$old" ] && [ "$(cat "$state/version" 2>/dev/null)" = "$ALLUVIUM_VERSION" ] && has "$old"; then
    exit 0 # run again for a version that is served already
fi
[ "$old" != "http://127.0.0.1:$port" ] || port=$((port + 1))
new=http://127.0.0.1:$port
starting=$(cat "$state/starting" 2>/dev/null || true)
if running "$starting" "$port"; then # left by a run of this hook that was killed
    kill "$starting"
    tries=50
    while running "$starting" "$port"; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || kill -KILL "$starting"
        sleep 0.2
    done
fi
# Ends the new one until it is the one to use; set before it starts, so that no signal comes between.
trap '[ -z "${!:-}" ] || kill $! 2>/dev/null' EXIT
trap 'exit 1' TERM INT HUP
# shellcheck disable=SC2086
setsid "${LLAMA_SERVER:-llama-server}" --host 127.0.0.1 --port "$port" -m "$LLAMA_BASE" --lora "$ALLUVIUM_GGUF" \
    ${LLAMA_OPTIONS:-} >"$state/log" 2>&1 </dev/null &
pid=$!
echo "$pid" >"$state/starting"
tries=$((${LLAMA_WAIT:-90} * 5))
until kill -0 $pid 2>/dev/null && has "$new"; do
    tries=$((tries - 1))
    if [ $tries = 0 ] || ! kill -0 $pid 2>/dev/null; then
        echo "llama-server did not come up with $ALLUVIUM_GGUF; the last lines of $state/log:" >&2
        tail -3 "$state/log" >&2
        exit 1
    fi
    sleep 0.2
done
trap - EXIT
old_port=${old##*:}
echo "$new" >"$state/upstream"
echo "$ALLUVIUM_VERSION" >"$state/version"
echo "$pid" >"$state/pid"
rm -f "$state/starting"
[ -z "${LLAMA_SWITCH:-}" ] || $LLAMA_SWITCH "$new"
! running "$old_pid" "$old_port" || kill "$old_pid" # it ends its running answers by itself
