/* The life of action rows under claimers that stall, crash and come back, an operator, and a database clock.
 *
 * One step of `atomic` is one transaction as the statements write it; between two steps anything may happen. A claimer
 * remembers what its claim was (id, claim_count) and nothing else: it may stand still while the world goes on.
 * Run by check.sh. The mutants are switched on by -D.
 */

#ifndef ACTORS
#define ACTORS 2
#endif
#ifndef ROWS
#define ROWS 1
#endif
#define ATTEMPTS 2    /* max_attempts */
#define CLAIMS 9      /* more than attempts, releases, waits and one retry by the operator can come to */
#define LEASE 2       /* ticks of the database's clock that are left: 0 is over */

mtype = { pending, claimed, processed, dead, cancelled };

typedef Row {
  mtype status = pending;
  byte claim_count;
  byte fail_count;
  byte lease;         /* only while claimed */
  byte holder;        /* who was given the claim: the model's knowledge, not the table's */
  bool may_begin;     /* the mark: an execution under this claim may have begun (`run_id`, in the table) */
  bool has_begun;     /* one has: the model's knowledge */
  byte runs;          /* executions begun */
};

Row row[ROWS];
#ifndef FAULTS
#define FAULTS 2
#endif
byte faults = FAULTS; /* crashes and releases that may still happen; the clock makes the stalls */
#ifndef WAITS
#define WAITS 1
#endif
byte waits = WAITS;   /* claims that may still end before they began: those cost no attempt, so nothing else bounds them */
byte retries = 1;     /* what an operator may still do */

#define is_terminal(r) (row[r].status == processed || row[r].status == dead || row[r].status == cancelled)
#define fenced(r, c) (row[r].status == claimed && row[r].claim_count == (c))

#ifdef MUTANT_NO_FENCE
#define may_settle(r, c) (true)
#else
#define may_settle(r, c) fenced(r, c)
#endif

#ifdef MUTANT_BEGIN_BEFORE_MARK
#define begins_unmarked true
#else
#define begins_unmarked false
#endif

#ifdef MUTANT_EAGER_RESCUE
#define is_expired(r) (row[r].status == claimed)
#else
#define is_expired(r) (row[r].status == claimed && row[r].lease == 0)
#endif

inline make_pending(r) {
  row[r].status = pending; row[r].lease = 0; row[r].holder = 0
}

/* What a failed or crashed attempt becomes. */
inline count_failure(r) {
  row[r].fail_count++;
  if
  :: row[r].fail_count >= ATTEMPTS -> row[r].status = dead; row[r].lease = 0; row[r].holder = 0
  :: else -> make_pending(r)
  fi
}

inline take(r, me, c) {
  assert(row[r].status == pending);               /* S1: nobody else's lease is overwritten */
  assert(row[r].claim_count == c);                /* S1: it rises by one, and no other claim has the same number */
  row[r].status = claimed;
  assert(c < CLAIMS);
  row[r].claim_count = c + 1;
  row[r].lease = LEASE;
  row[r].holder = me;
  row[r].has_begun = false;
  if                                              /* claimed to begin at once, or read ahead */
  :: row[r].may_begin = true
  :: row[r].may_begin = false
  fi;
  c = row[r].claim_count
}

/* What a write under claim c by me may touch, whatever the statement's condition was (S2, S3). */
inline check_mine(r, me, c) {
  assert(!is_terminal(r));
  assert(row[r].status == claimed);
  assert(row[r].claim_count == c && row[r].holder == me)
}

active [ACTORS] proctype Claimer() {
  byte me = _pid + 1;
  byte r, c, renewals;

idle:
  renewals = 0;
  if
  :: r = 0
#if ROWS > 1
  :: r = 1
#endif
  fi;
  if
#ifdef MUTANT_READ_THEN_WRITE
  :: atomic { row[r].status == pending -> c = row[r].claim_count }
     atomic { take(r, me, c) }
#else
  :: atomic { row[r].status == pending -> c = row[r].claim_count; take(r, me, c) }
#endif
#ifndef MUTANT_NO_RESCUE
  :: atomic { is_expired(r) ->
       assert(row[r].lease == 0);                 /* S1: a lease that lives is nobody else's to end */
       assert(row[r].may_begin || !row[r].has_begun);                          /* S5: what began is counted */
       if
       :: row[r].may_begin -> count_failure(r)
       :: else -> make_pending(r)
       fi }
     goto idle
#endif
  :: else -> goto idle
  fi;

  if                                              /* the mark; the claim may be over by now, and then no effect */
  :: begins_unmarked
  :: atomic { !begins_unmarked && fenced(r, c) && row[r].may_begin }
  :: atomic { !begins_unmarked && fenced(r, c) && !row[r].may_begin -> check_mine(r, me, c); row[r].may_begin = true }
  :: atomic { faults > 0 && fenced(r, c) && !row[r].may_begin -> faults--; waits++ } goto idle     /* crash before it */
  :: atomic { !begins_unmarked && !fenced(r, c) } goto idle
  fi;

  atomic {                                        /* the processor is called; the claim may be over by now */
    row[r].runs++;
    assert(row[r].runs <= row[r].claim_count);
    if
    :: fenced(r, c) -> row[r].has_begun = true
    :: else
    fi
  }

work:
  if
  :: atomic { fenced(r, c) && row[r].lease > 0 && row[r].lease < LEASE && renewals < 1 ->   /* never what is over */
       check_mine(r, me, c); row[r].lease = LEASE; renewals++ }
     goto work
  :: atomic { faults > 0 -> faults-- } goto idle                               /* crash: forgets all; or lost answer */
  :: skip                                                                      /* finished */
  fi;

  /* Settle, late or in time. */
  if
  :: atomic { may_settle(r, c) -> check_mine(r, me, c);
       row[r].status = processed; row[r].lease = 0; row[r].holder = 0 }
  :: atomic { may_settle(r, c) -> check_mine(r, me, c); count_failure(r) }
  :: atomic { may_settle(r, c) && faults > 0 -> faults--; check_mine(r, me, c); make_pending(r) }  /* release, snooze */
  :: atomic { may_settle(r, c) -> check_mine(r, me, c);
       row[r].status = cancelled; row[r].lease = 0; row[r].holder = 0 }
#ifndef MUTANT_NO_FENCE
  :: else                                                                      /* a lost lease: nothing was written */
#endif
  fi;
  goto idle
}

/* Time passes for a holder that does nothing: it stalls, or is dead. */
#define may_tick(r) (row[r].status == claimed && row[r].lease > 0 && (row[r].may_begin || row[r].lease > 1 || waits > 0))

inline tick(r) {
  row[r].lease--;
  if
  :: row[r].lease == 0 && !row[r].may_begin -> waits--
  :: else
  fi
}

active proctype Clock() {
  do
  :: atomic { may_tick(0) -> tick(0) }
#if ROWS > 1
  :: atomic { may_tick(1) -> tick(1) }
#endif
  od
}

active proctype Operator() {
  do
  :: atomic { retries > 0 && row[0].status == pending -> retries--; row[0].status = cancelled }
  :: atomic { retries > 0 && (row[0].status == dead || row[0].status == cancelled) ->
       retries--; row[0].fail_count = 0; make_pending(0) }
  od
}

/* S3, seen from outside: a terminal row stays what it is, but for the operator's hand, and claims never fall. */
active proctype Watcher() {
  byte before;
  mtype was;
  byte hands;
end:
  do
  :: atomic { is_terminal(0) -> was = row[0].status; before = row[0].claim_count; hands = retries }
     atomic { assert(hands != retries || (row[0].status == was && row[0].claim_count == before)) }
  od
}

/* L1: in the end terminal, and for ever, if every process that can go on does so (weak fairness). */
#define settled_for_good (is_terminal(0) && row[0].lease == 0)
ltl L1 { <> [] settled_for_good }
