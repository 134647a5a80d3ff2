#!/bin/sh
# Search the whole model, then the mutants, each of which must fail. Exit 1: the model fails, or a mutant survives.
# With an argument: only the searches whose names begin with it.
set -eu
model=$(cd "$(dirname "$0")" && pwd)/actions.pml
only=${1:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
wrong=0

# check NAME EXPECTED(holds|fails) safety|liveness [-D...]
check() {
  name=$1 expected=$2 kind=$3
  shift 3
  case $name in "$only"*) ;; *) return 0 ;; esac
  cd "$work"
  rm -f pan pan.* ./*.trail
  spin -a "$@" "$model" >spin.log || { cat spin.log; exit 1; }
  if [ "$kind" = safety ]; then
    cc -O2 -w -DSAFETY -DNOCLAIM -o pan pan.c && ./pan -m1000000 >pan.log 2>&1 || true
  else
    cc -O2 -w -DNFAIR=3 -o pan pan.c && ./pan -a -f -m1000000 >pan.log 2>&1 || true
  fi
  states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' pan.log)
  # Searched to the end, or it says nothing.
  if grep -q 'max search depth too small\|out of memory\|Search not completed' pan.log && ! grep -q 'errors: [1-9]' pan.log; then
    verdict=unfinished
  elif grep -q 'errors: 0$' pan.log; then
    verdict=holds
  elif grep -q 'errors: [1-9]' pan.log; then
    verdict=fails
  else
    verdict=unfinished
  fi
  reason=$(sed -n 's/^pan:1: //p' pan.log | cut -c1-90)
  printf '%-48s %9s states  %-10s %s\n' "$name" "$states" "$verdict" "$reason"
  if [ "$verdict" != "$expected" ]; then
    echo "  expected: $expected"
    [ "$verdict" = unfinished ] && cat pan.log
    wrong=1
  fi
}

check 'S1 S2 S3: 2 actors, 1 row' holds safety
check 'S1 S2 S3: 3 actors, 1 row, one fault' holds safety -DACTORS=3 -DFAULTS=1 -DWAITS=0
check 'S1 S2 S3: 2 actors, 2 rows, stalls only' holds safety -DROWS=2 -DFAULTS=0 -DWAITS=0
check 'L1: 2 actors, 1 row, weak fairness' holds liveness
check 'mutant: settle without the fence' fails safety -DMUTANT_NO_FENCE
check 'mutant: rescue that ignores the lease' fails safety -DMUTANT_EAGER_RESCUE
check 'mutant: claim by read, then write' fails safety -DMUTANT_READ_THEN_WRITE
check 'mutant: work that begins before the mark' fails safety -DMUTANT_BEGIN_BEFORE_MARK
check 'mutant: no rescue' fails liveness -DMUTANT_NO_RESCUE

exit $wrong
