/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Step contexts: what a thread says of its step by the marker
 * (agenttop_step.h): an id, a class, a deadline, a budget and a name.
 *
 * A context lasts from its marker to the thread's next one, or to its end.
 * Steps are counted by the name that held at their gate's entry, in a lane
 * that the agent has for this name: a row of sums and two histograms. Lanes
 * are few and made beforehand. A thread that opted in by itself draws from a
 * pool of their own, so that nobody can use up those of agents by rule. Of each
 * pool a user's agents may take as many as are left for others.
 *
 * Everything here is paid by whoever calls the marker. Of a thread without
 * context the chain asks two numbers, both 0.
 */

struct name_key {
	u64 slot;
	u64 name[NAME_WORDS];	/* all 0: the agent's names beyond the limit */
};

struct lane_hist {
	u32 bucket[NR_LANE_MEASURES][BUCKETS];
};

/* As hist: compiled.py says why. */
struct lane_hist_stub {
	u32 first;
};

BPF_F_TABLE("array", u32, struct lane, lanes, LANES, MMAPABLE);
BPF_F_TABLE("array", u32, struct lane_hist_stub, lane_hist, LANES, MMAPABLE);
BPF_HASH(names, struct name_key, u32, LANES);
/* Lanes that nobody has; user space fills them. */
BPF_QUEUE(free_lanes, u32, LANES);
BPF_QUEUE(free_alone, u32, LANES);
/* Lanes taken: of all agents at 0, then by user; user space gives out the places. */
BPF_F_TABLE("array", u32, struct share, shares, SLOTS, MMAPABLE);

static __always_inline struct marks *marks_of(struct thread *t)
{
	u32 slot = t->slot;

	if (slot == NO_SLOT || slot >= SLOTS)
		return 0;
	return marks.lookup(&slot);
}

static __always_inline u32 free_lane(struct thread *t)
{
	u32 lane = 0;

	if (t->alone)
		free_alone.pop(&lane);
	else
		free_lanes.pop(&lane);
	return lane;
}

static __always_inline void keep_lane(struct thread *t, u32 lane)
{
	if (t->alone)
		free_alone.push(&lane, 0);
	else
		free_lanes.push(&lane, 0);
}

/* A lane for a key that has none; 0: they are all taken, or it has one now. */
static __always_inline u32 new_lane(struct thread *t, struct marks *m,
				    struct name_key *key)
{
	u32 zero = 0, place = m->share, pool = !!t->alone, lane;
	struct share *all = shares.lookup(&zero), *own = shares.lookup(&place);
	struct lane *l;

	if (!all || !own)
		return 0;
	if (place && own->taken[pool] - own->returned[pool] >=
		     LANES_BY_RULE - (all->taken[pool] - all->returned[pool]))
		return 0;
	lane = free_lane(t);
	l = lanes.lookup(&lane);
	if (!lane || !l)
		return 0;
	l->name[0] = key->name[0];
	l->name[1] = key->name[1];
	l->name[2] = key->name[2];
	l->name[3] = key->name[3];
	if (names.insert(key, &lane)) {
		/* Another thread of the agent was faster with the same name. */
		keep_lane(t, lane);
		return 0;
	}
	__sync_fetch_and_add(&all->taken[pool], 1);
	if (place)
		__sync_fetch_and_add(&own->taken[pool], 1);
	barrier();
	l->slot = key->slot;
	return lane;
}

static __always_inline u32 lane_of(struct thread *t, struct marks *m,
				   struct name_key *key)
{
	u32 *known = names.lookup(key), lane = 0;

	if (known)
		return *known;
	if (__sync_fetch_and_add(&m->names, 1) < NAMES_EACH)
		lane = new_lane(t, m, key);
	if (lane)
		return lane;
	__sync_fetch_and_add(&m->names, -1);
	known = names.lookup(key);
	if (known)
		return *known;
	__sync_fetch_and_add(&m->crowded, 1);
	key->name[0] = 0;
	key->name[1] = 0;
	key->name[2] = 0;
	key->name[3] = 0;
	known = names.lookup(key);
	return known ? *known : new_lane(t, m, key);
}

static __always_inline void lane_count(u32 lane, u32 slot, u64 step, u64 slow)
{
	struct lane *l = lanes.lookup(&lane);
	struct lane_hist *h = (void *)lane_hist.lookup(&lane);

	/* A thread that has gone to another agent may have a lane of the old one. */
	if (!lane || !l || !h || l->slot != slot)
		return;
	__sync_fetch_and_add(&l->steps, 1);
	__sync_fetch_and_add(&l->step_ns, step);
	__sync_fetch_and_add(&l->slow_ns, slow);
	__sync_fetch_and_add(&h->bucket[LANE_STEP][bucket_of(step)], 1);
	__sync_fetch_and_add(&h->bucket[LANE_SLOWPATH][bucket_of(slow)], 1);
}

/* A step has ended. */
static __always_inline void step_named(struct thread *t, u64 step, u64 slow)
{
	if (t->lane) {
		lane_count(t->lane, t->slot, step, slow);
		t->owed_step = 0;
	} else if (t->paused) {
		t->owed_step = step;
		t->owed_slow = slow;
	}
}

/*
 * What a thread resumes is what it has waited for. An event loop may have
 * looked at its gate once more since: then the step is over already.
 */
static __always_inline void step_resumed(struct thread *t)
{
	t->paused = 0;
	if (t->lane)
		return;
	if (t->in) {
		t->lane = t->step_lane;
	} else if (t->owed_step) {
		lane_count(t->step_lane, t->slot, t->owed_step, t->owed_slow);
		t->owed_step = 0;
	}
}

static __always_inline void context_drop(struct thread *t)
{
	t->step_id = 0;
	t->step_lane = 0;
	t->deadline = 0;
	t->budget = 0;
}

/*
 * A context's time on a CPU. Where the switch to it went by unseen
 * (switch_in_lost), it is not known, and counts as none: a budget is never
 * said to be overrun without proof.
 */
static __always_inline void context_off(struct thread *t, u64 now)
{
	if (!t->budget)
		return;
	if (t->ran_since)
		t->ran += now - t->ran_since;
	else
		lose(LOSS_SWITCH_IN);
	t->ran_since = 0;
}

static __always_inline void context_on(struct thread *t, u64 now)
{
	if (t->budget)
		t->ran_since = now;
}

static __always_inline void context_judge(struct thread *t)
{
	struct marks *m = marks_of(t);
	u32 class = t->step_class & (NR_CLASSES - 1);
	u64 now = bpf_ktime_get_ns();

	if (!m || !t->step_id)
		return;
	if (t->deadline && now > t->deadline)
		__sync_fetch_and_add(&m->missed[class], 1);
	else if (t->deadline)
		__sync_fetch_and_add(&m->met[class], 1);
	context_off(t, now);
	if (t->budget && t->ran > t->budget)
		__sync_fetch_and_add(&m->overrun[class], 1);
}

/* The context is over: was it in time, and within its budget? */
static __always_inline void context_end(struct thread *t)
{
	if (t->deadline || t->budget)
		context_judge(t);
	context_drop(t);
}

static __always_inline u32 lane_of_name(struct thread *t, struct marks *m,
					u64 *name)
{
	struct name_key key = {};

	key.slot = t->slot;
	key.name[0] = name[0];
	key.name[1] = name[1];
	key.name[2] = name[2];
	key.name[3] = name[3];
	return lane_of(t, m, &key);
}

#if TASK_STORAGE
/* Its lanes are another agent's from now on. */
static __always_inline void names_forget(struct thread *t)
{
#pragma clang loop unroll(full)
	for (u32 i = 0; i < NAMES_NEAR; i++)
		t->named[i].lane = 0;
}

/*
 * The lane of the name that was read from @user. A thread mostly tells the
 * same few, each from an address of its own: comparing is quicker than looking
 * up. Those beyond the limit are looked up, and so counted, each time.
 */
static __always_inline u32 lane_near(struct thread *t, struct marks *m,
				     u64 *name, u64 user)
{
	struct named *n = &t->named[(user >> 4 ^ user >> 6) & (NAMES_NEAR - 1)];
	u64 crowded = m->crowded;
	u32 lane;

	if (n->lane && n->name[0] == name[0] && n->name[1] == name[1] &&
	    n->name[2] == name[2] && n->name[3] == name[3])
		return n->lane;
	lane = lane_of_name(t, m, name);
	n->lane = m->crowded == crowded ? lane : 0;
	n->name[0] = name[0];
	n->name[1] = name[1];
	n->name[2] = name[2];
	n->name[3] = name[3];
	return lane;
}
#else
#define names_forget(t)
#define lane_near(t, m, name, user)	lane_of_name(t, m, name)
#endif

/* The lane of the name that the marker points to, and the budget. */
static __always_inline u32 context_read(struct thread *t, struct marks *m, u64 user,
					u64 *budget)
{
	u64 told[2 + NAME_WORDS] = {};

	if (bpf_probe_read_user(told, sizeof(told), (void *)user)) {
		__sync_fetch_and_add(&m->unread, 1);
		return 0;
	}
	if (told[0] < CONTEXT_SIZE || told[0] > PAGE_SIZE) {
		__sync_fetch_and_add(&m->invalid, 1);
		return 0;
	}
	*budget = told[1];
	return told[2] & 0xff ? lane_near(t, m, &told[2], user) : 0;
}

/*
 * What a number in user_data stands for, in this process: at its place, or at
 * a free one, or where the one stands that was told longest ago.
 */
static __always_inline void context_keep(u32 slot, struct marks *m, u64 number,
					 u64 latency, u64 span, u64 lane)
{
	u64 key = bpf_get_current_pid_tgid() >> 32 << 32 | number;
	struct kept_set *set = kept_set(slot, key);
	u64 oldest = ~0ULL, age;
	struct kept *k = 0;

	if (!set)
		return;
#pragma clang loop unroll(full)
	for (u32 i = 0; i < KEPT_WAYS; i++) {
		age = set->at[i].key == key ? 0 : set->at[i].when;
		if (age < oldest) {
			oldest = age;
			k = &set->at[i];
		}
	}
	if (!k)
		return;
	if (k->key != key) {
		__sync_fetch_and_add(&m->kept, 1);
		if (k->key)
			__sync_fetch_and_add(&m->forgotten, 1);
	}
	k->key = 0;
	barrier();
	k->span = span;
	k->latency = latency;
	k->lane = lane;
	k->when = bpf_ktime_get_ns();
	barrier();
	k->key = key;
}

/* The marker: @how is the class, and flags. */
static __always_inline void step_marked(struct thread *t, u64 step_id, u64 how,
					u64 deadline, u64 user)
{
	u32 class = how & STEP_CLASS_MASK, lane = 0;
	struct marks *m = marks_of(t);
	u64 budget = 0;

	if (how & STEP_URING) {
		if (m && (!step_id || step_id >> 16)) {
			__sync_fetch_and_add(&m->invalid, 1);
			return;
		}
	} else {
		if (how & STEP_PAUSE) {
			context_drop(t);
			t->paused = 1;
		} else {
			context_end(t);
		}
		if (!step_id)
			return;
		t->step_id = step_id;
		t->deadline = deadline;
		t->step_class = class;
		t->ran = 0;
	}
	if (!m)
		return;
	if (class >= NR_CLASSES || how & ~STEP_KNOWN) {
		class = 0;
		if (!(how & STEP_URING))
			t->step_class = 0;
		__sync_fetch_and_add(&m->invalid, 1);
	}
	if (user)
		lane = context_read(t, m, user, &budget);
	if (how & STEP_URING) {
		context_keep(t->slot, m, step_id, class, deadline, lane);
		return;
	}
	if (!(how & STEP_RESUME))
		__sync_fetch_and_add(&m->contexts, 1);
	if (budget) {
		t->ran_since = bpf_ktime_get_ns();
		t->budget = budget;
	}
	t->step_lane = lane;
	if (how & STEP_RESUME)
		step_resumed(t);
}
