#!/usr/bin/env bash
# The habits a machine can check: format, line length, banned calls, unfinished words, doors between rooms.
#   tests/tidy/tidy.sh [ROOT]        prints every offence, exits 1 when there is one
set -u
cd "${1:-$(dirname "$0")/../..}" || exit 2
rooms="base proto net store replay adapter model coordinator worker client cli"
mapfile -t files < <(find $rooms tests bench -name '*.[ch]' | sort)
[ "${#files[@]}" -gt 20 ] || { echo "tidy: found only ${#files[@]} sources; run from the project" >&2; exit 2; }
bad=0
say() { echo "tidy: $1"; bad=1; }

command -v clang-format >/dev/null || { echo "tidy: clang-format is missing (scripts/packages test)" >&2; exit 2; }
while IFS= read -r f; do say "$f: not formatted (clang-format -i $f)"; done < <(
  clang-format --dry-run -Werror "${files[@]}" 2>&1 | sed -n 's/^\([^: ]*\):.*error:.*/\1/p' | sort -u)

offences() { # offences WHY REGEX [FILES...]: code only; a line may say "tidy: allowed" with its reason
  local why=$1 regex=$2; shift 2
  while IFS= read -r hit; do say "$why: $hit"; done < <(grep -nHE "$regex" "$@" | grep -v 'tidy: allowed' | cut -c1-160)
}
offences "unbounded or unchecked call" '\b(strcpy|strcat|vsprintf|gets|atoi|atol|atof|strtok|rand|srand|alloca|tmpnam)\(' "${files[@]}"
mapfile -t product < <(find $rooms -name '*.[ch]')
offences "unbounded, or another program" '\b(sprintf|system|popen)\(' "${product[@]}"
offences "sleep as synchronisation" '\b(sleep|usleep|nanosleep)\(' "${files[@]}"
offences "unfinished" '\b(TODO|FIXME|XXX|HACK)\b' "${files[@]}"
offences "include past the door" '#include "\.\./' "${files[@]}"
mapfile -t cores < <(find coordinator/core -name '*.[ch]'; ls worker/core.[ch] worker/plan.[ch] client/core.[ch] 2>/dev/null)
offences "a core touches the world" '#include (<(time|unistd|pthread|fcntl|sys/.*|zmq|rocksdb/.*)\.h>|"(base/(clock|log)|net/|store/(db|blob)).*")' "${cores[@]}"
offences "a core is not pure" '\b(clock_ms|clock_wall_s|random_bytes|getenv|fopen|fprintf|printf|open|read|write)\(' "${cores[@]}"
mapfile -t libraries < <(find base proto net store replay adapter model coordinator worker client -name '*.c' | grep -v '^base/check\|^base/log')
offences "a library prints or exits" '\b(printf|puts|exit|_exit)\(' "${libraries[@]}"
exit $bad
