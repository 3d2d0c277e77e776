#!/bin/sh
# The program from outside: help, exit codes, errors; nothing here needs a base model or a network.
set -u
alluvium=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
export HOME="$dir" NO_COLOR=1
failed=0 checked=0

# check CODE TEXT COMMAND...: the exit code, and a part of what it writes (both streams).
check() {
    want=$1 part=$2
    shift 2
    out=$("$@" 2>&1 </dev/null)
    got=$?
    checked=$((checked + 1))
    case $out in *"$part"*) found=1 ;; *) found=0 ;; esac
    if [ "$got" != "$want" ] || [ $found = 0 ]; then
        failed=$((failed + 1))
        printf 'FAILED: %s\n  exit code %s, expected %s; expected in the output: %s\n  output: %s\n' "$*" "$got" "$want" \
            "$part" "$out"
    fi
}

check 0 "Commands:" "$alluvium" --help
check 2 "Commands:" "$alluvium"
check 0 "alluvium " "$alluvium" --version
check 2 'did you mean "push"?' "$alluvium" psuh
check 2 'did you mean "versions list"?' "$alluvium" versions lits
check 2 "keys add" "$alluvium" keys
check 0 "keys add" "$alluvium" keys --help

# Every command has help that begins with examples and names its settings section.
"$alluvium" --help | sed -n '/^Commands:/,/^$/p' | sed -n 's/^  \([a-z]*\( [a-z]*\)\{0,1\}\)  .*/\1/p' >commands
while read -r command; do
    # shellcheck disable=SC2086 # a command may be two words
    check 0 "Usage: alluvium $command" "$alluvium" $command --help
    # shellcheck disable=SC2086
    case $("$alluvium" $command --help) in
    Examples:*) ;;
    *) failed=$((failed + 1)) && echo "FAILED: the help of $command does not begin with examples" ;;
    esac
    # shellcheck disable=SC2086
    check 2 "unknown option --no-such-thing" "$alluvium" $command --no-such-thing
done <commands
[ "$(wc -l <commands)" -ge 20 ] || { failed=$((failed + 1)) && echo "FAILED: too few commands were found"; }

# Which line?
check 2 "which line?" "$alluvium" status
check 3 "nowhere/operator.join" "$alluvium" status -C nowhere
check 2 "both -C" "$alluvium" status -C a --join b
check 2 '"status":"usage"' "$alluvium" status --json
printf 'rubbish\n' >bad.join && chmod 600 bad.join
check 78 "bad.join" "$alluvium" status --join bad.join

# Arguments that are wrong are told before anything is done.
check 2 "domain and what to push" "$alluvium" push notes
check 3 "missing.jsonl" "$alluvium" push notes missing.jsonl --join bad.join
check 2 "number of a version" "$alluvium" promote seven stable
check 2 "DOMAIN/RECORD" "$alluvium" trace notes
check 2 "NAME=VALUE" "$alluvium" domains set notes budget
check 2 "no role" "$alluvium" keys add driver x --out x.join
check 2 "--dir" "$alluvium" subscribe --join bad.join
check 2 "1 to 256" "$alluvium" train --rank 0
check 3 "missing.gguf" "$alluvium" eval --base missing.gguf x
check 3 "keys.json" "$alluvium" keys list -C nowhere

# Settings: the environment goes before the file, the command line before both.
printf '[train]\nsteps = 3\nlr = 0.5\n' >c.conf
check 0 "steps = 3  # file c.conf" "$alluvium" train --config c.conf --show-settings
check 0 "lr = 0.25  # environment" env ALLUVIUM_LR=0.25 "$alluvium" train --config c.conf --show-settings
check 0 "lr = 0.125  # command line" env ALLUVIUM_LR=0.25 "$alluvium" train --config c.conf --lr 0.125 --show-settings
printf '[train]\nstep = 3\n' >c.conf
check 78 'c.conf:2: unknown setting "step"; did you mean "steps"?' "$alluvium" train --config c.conf

mkfifo fifo # without a writer: nothing may wait for one
check 78 "fifo: not a regular file" timeout 20 "$alluvium" train --config fifo
check 65 "fifo: not a regular file" timeout 20 "$alluvium" eval --base fifo x

echo "$checked checks, $failed failed"
[ $failed = 0 ] && [ $checked -gt 0 ]
