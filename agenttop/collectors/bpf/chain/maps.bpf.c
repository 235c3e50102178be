/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Maps, and how a task is looked at.
 *
 * Written for BCC and no kernel headers: the prelude that the loader puts
 * before this file holds the sizes, the structs that user space reads too
 * (layout.py), the field offsets of the running kernel (btf.py) and the
 * system-call numbers of the gates. Kernel structs are only touched at those
 * offsets.
 *
 * TASK_STORAGE 1: tp_btf programs, thread state in task-local storage.
 * TASK_STORAGE 0: raw tracepoints, thread state in a hash keyed by tid.
 * LEVEL_FULL 0 ("lite"): no system-call events; the gate is read from the
 * saved registers when the thread goes off the CPU.
 */

typedef unsigned long long *args_t;

#define barrier() asm volatile("" ::: "memory")

/* include/linux/sched.h; the values have not moved since 5.12. */
#define PF_EXITING	0x00000004
#define PF_IO_WORKER	0x00000010
#define PF_WQ_WORKER	0x00000020
#define PF_USER_WORKER	0x00004000
#define PF_KTHREAD	0x00200000

/* TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE */
#define TASK_NORMAL	0x00000003

/* A wake-up as its waker saw it. Only the waker writes. */
struct wake {
	u64 waking;		/* sched_waking */
	u64 wakeup;		/* sched_wakeup, on the target CPU */
	u64 event;		/* the completion's first kernel event */
	u64 soft;		/* softirq entry, or waking where none lies between */
	u64 late;		/* timer: expiry to interrupt, ns */
	u32 seq;
	u16 source;
	u16 late_idle;		/* the CPU was idle meanwhile */
	u32 kind;		/* WAKER_* */
	u32 id;			/* tid, line, vector or softirq */
	u64 until;		/* end of the window that it opened; 0: none */
	u32 held;		/* the CPU that it is open on */
	u32 cpu;		/* the waker's */
	u32 target;		/* the CPU that it was queued on; holds if wakeup does */
};

/* A name that a thread has told of late, and its lane (steps.bpf.c). */
struct named {
	u64 name[NAME_WORDS];
	u64 lane;		/* 0: there is none here */
};

/* What is told of a cause with labels, in one step (words.DETAILS). */
struct told {
	u64 label[LABEL_WORDS];
	u64 extra[EXTRAS];
};

/* A timer whose function runs, or ran (causes_wake.bpf.c). */
struct expiry {
	u64 function;
	u64 wheel;		/* of the timer wheel, else an hrtimer */
	u64 slack_used;		/* after the earliest time that would have done */
	u64 slack;
	u64 late;		/* after the latest */
	u64 late_idle;		/* of that, with the CPU idle */
};

/*
 * What the waker knows of the causes of the stages that its wake-up ends
 * (causes_wake.bpf.c). Only the waker writes.
 */
struct given {
	u32 seq;		/* of the wake-up */
	u32 has;		/* causes, one bit each */
	u32 cpu;
	u32 irq_softirq;	/* by a softirq that the interrupt raised */
	u64 irq_by;		/* kind, and line or vector */
	u64 irq_ns;
	u64 irq_whole;		/* to its end, where that came before the wake-up */
	u32 soft_vec;
	u32 soft_thread;	/* run by ksoftirqd */
	u64 soft_ns;		/* its entry to the wake-up */
	u64 soft_raised;	/* its raise to its entry */
	u64 timer_ns;
	struct expiry timer;
	u64 net_ns;		/* the poll's begin to the wake-up */
	u64 net_label[3];
	u64 sock_ns;		/* the packet's coming in to the wake-up */
	u64 sock_label[5];
	u64 work_queued;	/* until it ran */
	u64 work_known;		/* that is known */
	u64 work_run;		/* from there to the wake-up */
	u64 work_label[3];
	u64 block_begun;
	u64 block_label[2];
	u64 block_extra[EXTRAS];
	u64 ring_begun;
	u64 ring_ns;
	u32 ring_opcode;
	u32 ring_worker;
	u32 ring_lane;
	u32 pad;
};

/* Who ran on a CPU while a thread waited for it. */
struct ran_by {
	u64 kind;		/* RAN_* */
	u64 comm[2];
	u64 ns;
};

/* What is known of a thread. Only the thread itself writes, but for slot, wake and given. */
struct thread {
	u64 slot;		/* these six are read by user space */
	u64 steps;
	u64 last;		/* end of the last step; asked last (PENDING_SLOT) */
	u32 cpu;
	u32 uid;		/* real user that asked, by the machine's numbers */
	u32 asks;		/* EDGE_*: how it asked */
	u32 gate;		/* index into words.GATES */
	u32 pend_gate;
	u32 seen;		/* sequence number of the wake-up taken last */
	u32 asleep;
	u32 alone;		/* opted in by itself: children are not measured */
	u64 enter;		/* gate entry (lite: went off the CPU in it) */
	u64 in;			/* switch-in after the wake-up */
	u64 exit;		/* gate return (full) */
	u64 cut;		/* gate return with EINTR, exit not decided yet */
	u64 pend;		/* entry of a maybe gate that has not slept yet */
	u64 loop;		/* last use of a loop gate */
	u64 off;		/* went off the CPU in compute */
	u64 off_part;		/* PART_PREEMPTED or PART_BLOCKED */
	u64 off_ns[2];		/* preempted, blocked */
	u64 stage[STAGE_QUEUE + 1];
	u32 source;
	u32 kind;
	u32 id;
	u32 from;		/* the waker's CPU + 1; 0: not known */
	u32 left;		/* left the gate it slept in (lite) */
	u32 lane;		/* of the step's name (steps.bpf.c); 0: it has none */
	u32 step_lane;		/* of the context; the rest is the context too */
	u16 step_class;
	u16 paused;		/* a context was set aside */
	u64 step_id;		/* 0: there is no context */
	u64 deadline;
	u64 budget;
	u64 ran;		/* time on a CPU until ran_since */
	u64 ran_since;		/* 0: off the CPU */
	u64 owed_step;		/* the last step, if nobody's and a context was set aside */
	u64 owed_slow;
	struct wake wake;
#if TASK_STORAGE
	struct named named[NAMES_NEAR];
	/* Causes of the current step (causes.bpf.c), one bit each. */
	u32 caused;		/* had; what follows holds for these */
	u32 cause_open;		/* under way */
	u32 cause_off;		/* to end with the next switch-in */
	u32 folding;		/* had by the step that has ended just now */
	u32 cause_events[NR_CAUSES];
	u64 cause_ns[NR_CAUSES];
	u64 cause_since[NR_CAUSES];
	u64 explained_ns;	/* in any of those of compute */
	u64 explained_since;
	u32 taken;		/* sequence number of the wake-up whose causes were taken */
	u32 raised_irq;		/* the handler's time and the raise are one behind the other */
	u64 raised_ns;		/* softirq: raise to entry */
	/*
	 * What the causes of each stage up to the queue explain, while they
	 * are folded. On the stack the verifier of 7.2 would take all of it
	 * to be in use wherever one of them is read by its number, and would
	 * find no two paths alike.
	 */
	u64 staged_ns[STAGE_QUEUE + 1];
	struct given given;
	/* Between the wake-up and the run (causes_run.bpf.c). */
	u32 left_cpu;		/* the CPU that it ran on last, + 1; 0: not known */
	u32 ready_seq;		/* of the wake-up that this is of: */
	u64 ready_stolen;	/* stolen_ns of the CPU that it was queued on */
	struct ran_by others[RAN_EACH + 1];	/* the last has those beyond */
	u32 run_seq;		/* of the wake-up whose causes were told */
	u32 had_khz;		/* the next two hold */
	u64 khz;		/* frequency at the switch-in */
	u64 khz_in;		/* which was then */
	u64 asked;		/* read from a disk in the call that is looked at */
	struct told told[NR_LABELLED];
#endif
};

/*
 * 32 bits are enough between two looks of user space, which makes 64 of them;
 * whole pages per agent, so that user space maps only those in use.
 */
struct agent_hist {
	u32 bucket[MEASURES][BUCKETS];
};

/* What BCC is told that hist holds: compiled.py says why. */
struct agent_hist_stub {
	u32 first;
};

struct cause_hist {
	u32 bucket[CAUSE_HISTS][CAUSE_BUCKETS];
};

/* Labels that learn what one NAPI poll took, at most. */
#define MAX_POLLED 4
/* Sizes of tables, powers of two. */
#define WORKS 1024
#define WORKERS 1024

struct queued_work {
	u64 work;
	u64 ts;
};

/* A kernel thread that works at something. */
struct worker {
	u64 tid;
	u64 function;
	u64 queued;		/* 0: not known */
	u64 since;
};

/* Two cache lines: the processor fetches them in pairs. */
#define PER_CPU __attribute__((aligned(CPU_ALIGN)))

/* What each CPU is doing, as far as only causes need it (causes_wake.bpf.c). */
struct delivery {
	struct {
		u64 ts;		/* the first of this softirq since it ran last */
		u64 by;		/* the interrupt that raised it; 0: none */
		u64 by_ts;	/* its entry */
	} raised[NR_SOFTIRQ], soft;
	u64 raised_by;		/* entry of the interrupt that raised one last */
	struct {
		u32 slot;	/* 0: none */
		u64 since;
		u64 label[LABEL_WORDS];
	} handled;		/* woken by the interrupt that runs */
	struct {
		u64 since;
		u64 ns;
	} handler;		/* that has ended */
	struct expiry timer;
	u64 wheel;		/* a timer of the wheel expires */
	struct {
		u64 ts;
		u64 dev;
		u64 data;	/* its network header */
		u32 napi;
		u32 queue;
	} packet;		/* the last */
	struct {
		u64 ts;
		u64 sock;
	} ready;		/* the socket that was told last */
	u64 poll_since;
	u64 thread_in;		/* a kernel thread runs */
	u64 number;
	u32 nr_polled;
	struct {
		u32 slot;
		u64 label[LABEL_WORDS];
	} polled[MAX_POLLED];	/* woken in this poll */
} PER_CPU;

struct kept_set {
	struct kept at[KEPT_WAYS];
};

struct one_hist {
	u32 bucket[BUCKETS];
};

/* One switch of a CPU; the newest of them is what the CPU does now. */
struct ran {
	u64 since;
	u64 idle_ns;		/* the CPU had been idle until then */
	u64 idle;		/* all ones: it went idle */
	u64 stolen_ns;		/* had spent in interrupts until then */
	u64 kind;		/* RAN_* */
	u64 comm[2];
};

/* A look back at a wait; of the CPU that looks. */
struct look {
	u64 from;
	u64 end;
	u64 after;		/* stolen_ns at the end, if known */
	u64 known;
	u64 total;		/* in which others ran */
	u64 irqs;
	u64 allowed[2];
	u64 idle_ns;
	u64 idle_cpu;
};

/* What a CPU ran lately; others look at it too (causes_run.bpf.c). */
struct run_cpu {
	struct look look;
	u64 cpu;		/* its number */
	u64 head;
	struct ran ran[RAN_KEPT];
} PER_CPU;

/* The CPUs that run, as user space sees them: one that does not is none to run on. */
struct online_cpus {
	u64 mask[AVOIDABLE_CPUS / 64];
};

struct assignment {
	u32 slot;
	u32 alone;
};

/*
 * Arrays with a row for each CPU take the place of per-CPU maps, which have one
 * for each CPU that could ever be plugged in (cpurows.py). MMAPABLE also makes
 * them begin on a page: with PER_CPU no two CPUs write to one cache line.
 */
#define MMAPABLE (1U << 10)
/* CPU -> row, where they differ. */
BPF_ARRAY(cpu_rows, u32, CPU_SPAN);
/* What got lost on CPUs that have no row. */
BPF_F_TABLE("array", u32, u64, lost_apart, NR_LOSSES, MMAPABLE);
BPF_F_TABLE("array", u32, struct agent_hist_stub, hist, SLOTS, MMAPABLE);
BPF_F_TABLE("array", u32, struct row, rows, SLOTS * CPU_ROWS, MMAPABLE);
BPF_F_TABLE("array", u32, struct cause_row, cause_rows, SLOTS * CPU_ROWS, MMAPABLE);
BPF_F_TABLE("array", u32, struct agent_hist_stub, cause_hist, SLOTS, MMAPABLE);
/* The causes that are observed, one bit each; some programs see several. */
BPF_ARRAY(cause_wanted, u32, 1);
BPF_ARRAY(online_cpus, struct online_cpus, 1);
BPF_TABLE("hash", struct detail_key, struct detail, cause_details, MAX_LABELS);
BPF_F_TABLE("array", u32, struct labels, cause_labels, SLOTS, MMAPABLE);
BPF_F_TABLE("array", u32, struct delivery, delivery, CPU_ROWS, MMAPABLE);
BPF_ARRAY(works, struct queued_work, WORKS);
BPF_ARRAY(workers, struct worker, WORKERS);
BPF_F_TABLE("array", u32, struct run_cpu, run_cpus, CPU_ROWS, MMAPABLE);
BPF_F_TABLE("array", u32, struct power_cpu, power_cpus, CPU_ROWS, MMAPABLE);
BPF_F_TABLE("array", u32, struct control, controls, SLOTS, MMAPABLE);
BPF_F_TABLE("array", u32, struct one_hist, soft_hist, CPU_ROWS * NR_SOFTIRQ, MMAPABLE);
BPF_F_TABLE("array", u32, struct one_hist, idle_hist, NR_IDLE, MMAPABLE);
BPF_F_TABLE("array", u32, struct cpu, cpus, CPU_ROWS, MMAPABLE);
BPF_F_TABLE("array", u32, struct irq_row, irqs, CPU_ROWS * NR_IRQ, MMAPABLE);
/* Line -> source of the wake-ups from it, by the line's name; user space fills it. */
BPF_ARRAY(irq_source, u32, NR_IRQ);
BPF_ARRAY(learned, struct learned, 1);
/* What step markers told (steps.bpf.c): numbers, and what user_data stands for. */
BPF_F_TABLE("array", u32, struct marks, marks, SLOTS, MMAPABLE);
BPF_F_TABLE("array", u32, struct kept_set, kept, SLOTS * KEPT_SETS, MMAPABLE);
/* tgid or tid -> slot: whom the iterator adopts. */
BPF_HASH(assignments, u32, struct assignment, 16384);
BPF_RINGBUF_OUTPUT(edges, EDGE_PAGES);
/* The round in which user space takes edges, and processes with one in the ring. */
BPF_F_TABLE("array", u32, u64, edge_round, 1, MMAPABLE);
BPF_ARRAY(edge_told, u64, EDGE_TOLD);
BPF_RINGBUF_OUTPUT(slows, SLOW_PAGES);
BPF_F_TABLE("array", u32, struct window, windows, SLOTS, MMAPABLE);
/* One for each number of a CPU, then one for each slot. */
BPF_F_TABLE("array", u32, struct cell, cells, CPU_SPAN + SLOTS, MMAPABLE);
BPF_RINGBUF_OUTPUT(armed, ARMED_PAGES);
#if TASK_STORAGE
BPF_TASK_STORAGE(threads, struct thread);
#else
BPF_HASH(threads, u32, struct thread, 16384);
#endif

/* --- looking at kernel memory: at fixed offsets, without BCC's rewriting --- */

#if TASK_STORAGE
#define KERNEL_U32(ptr, off) ({						\
	u32 _v;								\
	asm volatile("%0 = *(u32 *)(%1 + %2)"				\
		     : "=r"(_v) : "r"(ptr), "i"(off));			\
	_v; })
#define KERNEL_U16(ptr, off) ({						\
	u64 _v;								\
	asm volatile("%0 = *(u16 *)(%1 + %2)"				\
		     : "=r"(_v) : "r"(ptr), "i"(off));			\
	(u32)(_v & 0xffff); })
#define KERNEL_U64(ptr, off) ({						\
	u64 _v;								\
	asm volatile("%0 = *(u64 *)(%1 + %2)"				\
		     : "=r"(_v) : "r"(ptr), "i"(off));			\
	_v; })
#else
#define KERNEL_U32(ptr, off) ({						\
	u32 _v = 0;							\
	bpf_probe_read_kernel(&_v, sizeof(_v), (void *)(ptr) + (off));	\
	_v; })
#define KERNEL_U64(ptr, off) ({						\
	u64 _v = 0;							\
	bpf_probe_read_kernel(&_v, sizeof(_v), (void *)(ptr) + (off));	\
	_v; })
#endif

/*
 * Kernels that guard tracepoints by SRCU run programs with preemption on. Two
 * kernel functions switch it; the loader puts their ids in place of the numbers.
 */
#if PREEMPTIBLE
static void (*preempt_off)(void) = (void *)CALL_PREEMPT_DISABLE;
static void (*preempt_on)(void) = (void *)CALL_PREEMPT_ENABLE;
#else
#define preempt_off()
#define preempt_on()
#endif

/* A CPU's row; one that came later has none: what is looked up with it is not there. */
static __always_inline u32 row_of(u32 cpu)
{
#if CPU_GAPS
	u32 *row = cpu_rows.lookup(&cpu);

	return row ? *row : CPU_ROWS;
#else
	return cpu;
#endif
}

static __always_inline u32 this_row(void)
{
	return row_of(bpf_get_smp_processor_id());
}

static __always_inline struct cpu *this_cpu(void)
{
	u32 row = this_row();

	return cpus.lookup(&row);
}

static __always_inline void lose(u32 what)
{
	struct cpu *cpu = this_cpu();
	u64 *apart;

	if (what >= NR_LOSSES)
		return;
	if (cpu) {
		cpu->losses[what]++;
		return;
	}
	apart = lost_apart.lookup(&what);
	if (apart)
		__sync_fetch_and_add(apart, 1);
}

/*
 * Most tasks are nobody's: this test costs 2 ns, the helper that finds a
 * task's state 16 to 36. Whose bpf_storage is set may be somebody's.
 */
static __always_inline int nobodys(void *task)
{
#if TASK_STORAGE && defined(OFF_BPF_STORAGE)
	return !KERNEL_U64(task, OFF_BPF_STORAGE);
#else
	return 0;
#endif
}

/* The state of a task, or NULL when it is nobody's. */
static __always_inline struct thread *thread_of(void *task)
{
	if (nobodys(task))
		return 0;
#if TASK_STORAGE
	return threads.task_storage_get(task, 0, 0);
#else
	u32 tid = KERNEL_U32(task, OFF_PID);

	return threads.lookup(&tid);
#endif
}

static __always_inline void *current_task(void)
{
#if TASK_STORAGE
	return (void *)bpf_get_current_task_btf();
#else
	return (void *)bpf_get_current_task();
#endif
}

static __always_inline struct thread *this_thread(void)
{
#if TASK_STORAGE
	return thread_of(current_task());
#else
	u32 tid = bpf_get_current_pid_tgid();

	return threads.lookup(&tid);
#endif
}

static __always_inline u32 log2_u64(u64 v)
{
	u32 r = 0;

	if (v >> 32) {
		v >>= 32;
		r = 32;
	}
	if (v >> 16) {
		v >>= 16;
		r += 16;
	}
	if (v >> 8) {
		v >>= 8;
		r += 8;
	}
	if (v >> 4) {
		v >>= 4;
		r += 4;
	}
	if (v >> 2) {
		v >>= 2;
		r += 2;
	}
	if (v >> 1)
		r += 1;
	return r;
}

/*
 * histogram.py: 32 sub-buckets per power of two, 1 ns to 68.7 s. The mask
 * changes nothing; it is there for the verifier, in assembly because the
 * compiler knows that it changes nothing and would drop it.
 */
static __always_inline u64 bucket_of(u64 v)
{
	u64 i = v, e;

	if (v >= (1U << SUB_BITS)) {
		e = log2_u64(v);
		if (e > MAX_EXPONENT) {
			lose(LOSS_OVERFLOW);
			i = BUCKETS - 1;
		} else {
			i = ((e - SUB_BITS) << SUB_BITS) + (v >> (e - SUB_BITS));
		}
	}
	asm volatile("%0 &= %1" : "+r"(i) : "i"(BUCKETS - 1));
	return i;
}

static __always_inline struct kept_set *kept_set(u32 slot, u64 key)
{
	u32 at = (key * 0x9e3779b97f4a7c15ULL) >> 32;

	at = slot * KEPT_SETS + (at & (KEPT_SETS - 1));
	return kept.lookup(&at);
}

/* What hrtimer_expire_entry(timer, now) tells of now: some kernels hand it over by a pointer. */
static __always_inline s64 hrtimer_now(args_t ctx)
{
#if HRTIMER_NOW_IS_POINTER
	s64 now = 0;

	bpf_probe_read_kernel(&now, sizeof(now), (void *)ctx[1]);
	return now;
#else
	return ctx[1];
#endif
}

/* EINTR, or one of the kernel's own ERESTART* (include/linux/errno.h). */
static __always_inline int interrupted(s64 ret)
{
	return ret == -4 || (ret <= -512 && ret >= -516);
}

/* Does this io_uring_enter wait? IORING_ENTER_GETEVENTS and min_complete > 0. */
static __always_inline int uring_waits(void *regs)
{
	return (u32)KERNEL_U64(regs, OFF_REGS_ARG3) &&
	       (KERNEL_U64(regs, OFF_REGS_ARG4) & 1);
}

#if !LEVEL_FULL
/*
 * Has the thread been in user space since it last went off the CPU? The kernel
 * keeps that in the thread's flags (on x86 TIF_NEED_FPU_LOAD: the switch saves
 * the FPU's registers, the way out to user space loads them). Which bit it is
 * differs between kernels, so it is learned (life.bpf.c). Where it is not
 * known, each sleep is taken for a gate of its own.
 */
static __always_inline int left_gate(void *task)
{
#ifdef OFF_THREAD_FLAGS
	struct learned *l;
	u32 zero = 0;

	l = learned.lookup(&zero);
	if (l && l->off_cpu)
		return (KERNEL_U64(task, OFF_THREAD_FLAGS) & l->off_cpu) !=
		       l->off_cpu;
#endif
	return 1;
}
#endif
