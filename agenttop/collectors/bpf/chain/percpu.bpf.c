/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * What each CPU is doing: hard interrupt, softirq, idle. It gives the CPU
 * panel its counters and a wake-up its context: `current` at sched_waking
 * names an unrelated task when an interrupt wakes.
 *
 * The loader attaches exit programs before entry programs, so that no
 * interrupt that attaching itself sends leaves a flag behind; a flag that
 * sticks all the same is cleared by the next exit of any hard interrupt.
 */

static __always_inline void hard_enter(u64 kind, u64 id)
{
	struct cpu *cpu = this_cpu();

	if (!cpu)
		return;
	cpu->hard = kind;
	cpu->hard_id = id;
	cpu->hard_idle = cpu->idle_now;
	cpu->hard_ts = bpf_ktime_get_ns();
}

int p_irq_handler_entry(args_t ctx)
{
	hard_enter(WAKER_LINE, (u32)ctx[0]);
	return 0;
}

int p_irq_handler_exit(args_t ctx)
{
	struct cpu *cpu = this_cpu();
	u32 irq = ctx[0], at;
	struct irq_row *row = 0;
	u64 ns;

	if (!cpu)
		return 0;
	if (cpu->hard == WAKER_LINE) {
		at = this_row() * NR_IRQ + irq;
		if (irq < NR_IRQ)
			row = irqs.lookup(&at);
		if (row) {
			ns = bpf_ktime_get_ns() - cpu->hard_ts;
			row->count++;
			row->ns += ns;
			if (!cpu->soft)
				cpu->stolen_ns += ns;
		} else {
			cpu->losses[LOSS_IRQ_RANGE]++;
		}
	}
	cpu->hard = 0;
	return 0;
}

static __always_inline int vector_exit(u32 vector)
{
	struct cpu *cpu = this_cpu();
	u64 ns;

	if (!cpu)
		return 0;
	if (cpu->hard == WAKER_VECTOR) {
		ns = bpf_ktime_get_ns() - cpu->hard_ts;
		cpu->vector_count[vector]++;
		cpu->vector_ns[vector] += ns;
		if (!cpu->soft)
			cpu->stolen_ns += ns;
	}
	cpu->hard = 0;
	return 0;
}

#define VECTOR_PROGRAMS(name, id)					\
	int p_##name##_entry(args_t ctx)				\
	{								\
		hard_enter(WAKER_VECTOR, id);				\
		return 0;						\
	}								\
	int p_##name##_exit(args_t ctx)					\
	{								\
		return vector_exit(id);					\
	}

VECTOR_PROGRAMS(local_timer, VECTOR_LOCAL_TIMER)
VECTOR_PROGRAMS(reschedule, VECTOR_RESCHEDULE)
VECTOR_PROGRAMS(call_function, VECTOR_CALL_FUNCTION)
VECTOR_PROGRAMS(call_function_single, VECTOR_CALL_FUNCTION_SINGLE)
VECTOR_PROGRAMS(irq_work, VECTOR_IRQ_WORK)
VECTOR_PROGRAMS(thermal_apic, VECTOR_THERMAL_APIC)
VECTOR_PROGRAMS(error_apic, VECTOR_ERROR_APIC)
VECTOR_PROGRAMS(spurious_apic, VECTOR_SPURIOUS_APIC)
VECTOR_PROGRAMS(threshold_apic, VECTOR_THRESHOLD_APIC)
VECTOR_PROGRAMS(deferred_error_apic, VECTOR_DEFERRED_ERROR_APIC)
VECTOR_PROGRAMS(x86_platform_ipi, VECTOR_X86_PLATFORM_IPI)

/*
 * hrtimer_expire_entry(struct hrtimer *, ktime_t *now): now is the time of
 * the timer's own clock when the interrupt came; newer kernels pass it by
 * value. A timer's completion is its expiry, not the interrupt: the way out
 * of a deep idle state lies between.
 */
int p_hrtimer_expire_entry(args_t ctx)
{
	struct cpu *cpu = this_cpu();
	s64 late;

	if (!cpu)
		return 0;
	late = hrtimer_now(ctx) - (s64)KERNEL_U64(ctx[0], OFF_HRTIMER_EXPIRES);
	cpu->hrtimer_late = late > 0 ? late : 0;
	cpu->hrtimer = 1;
	return 0;
}

int p_hrtimer_expire_exit(args_t ctx)
{
	struct cpu *cpu = this_cpu();

	if (cpu)
		cpu->hrtimer = 0;
	return 0;
}

/* Requests complete in the context that then wakes: a time stamp is enough. */
int p_block_rq_complete(args_t ctx)
{
	struct cpu *cpu = this_cpu();

	if (cpu)
		cpu->block_ts = bpf_ktime_get_ns();
	return 0;
}

int p_softirq_raise(args_t ctx)
{
	struct cpu *cpu = this_cpu();
	u32 vec = ctx[0];
	u64 now;

	if (!cpu || vec >= NR_SOFTIRQ || cpu->raise_ts[vec])
		return 0;
	now = bpf_ktime_get_ns();
	cpu->raise_ts[vec] = now;
	if (cpu->hard)
		cpu->raise_event[vec] = cpu->hard_ts;
	else if (cpu->soft)
		cpu->raise_event[vec] = cpu->soft_ts;
	else
		cpu->raise_event[vec] = now;
	return 0;
}

int p_softirq_entry(args_t ctx)
{
	struct cpu *cpu = this_cpu();
	u32 vec = ctx[0], id;
	struct one_hist *h;
	u64 now, i;

	if (!cpu || vec >= NR_SOFTIRQ)
		return 0;
	now = bpf_ktime_get_ns();
	cpu->soft = 1;
	cpu->soft_vec = vec;
	cpu->soft_ts = now;
	cpu->soft_event = now;
	if (cpu->raise_ts[vec]) {
		cpu->soft_event = cpu->raise_event[vec];
		id = this_row() * NR_SOFTIRQ + vec;
		h = soft_hist.lookup(&id);
		i = bucket_of(now - cpu->raise_ts[vec]);
		if (h)
			h->bucket[i]++;
		cpu->raise_ts[vec] = 0;
	}
	return 0;
}

int p_softirq_exit(args_t ctx)
{
	struct cpu *cpu = this_cpu();
	u32 vec = ctx[0];
	u64 ns;

	if (!cpu || vec >= NR_SOFTIRQ)
		return 0;
	if (cpu->soft && cpu->soft_vec == vec) {
		ns = bpf_ktime_get_ns() - cpu->soft_ts;
		cpu->softirq_count[vec]++;
		cpu->softirq_ns[vec] += ns;
		cpu->stolen_ns += ns;
	}
	cpu->soft = 0;
	return 0;
}

/* cpu_idle(state, cpu): state is (u32)-1 on the way out. */
int p_cpu_idle(args_t ctx)
{
	struct cpu *cpu = this_cpu();
	u32 state = ctx[0];
	u64 now, last;

	if (!cpu)
		return 0;
	now = bpf_ktime_get_ns();
	if (state != (u32)-1) {
		cpu->idle_now = (u64)state + 1;
		cpu->idle_enter = now;
		return 0;
	}
	last = cpu->idle_now - 1;
	if (last < NR_IDLE) {
		cpu->idle_count[last]++;
		cpu->idle_ns[last] += now - cpu->idle_enter;
		cpu->idle_last = last;
	}
	cpu->idle_now = 0;
	cpu->idle_exit = now;
	return 0;
}

/* cpu_frequency(frequency in kHz, cpu): may fire on another CPU than the one it names. */
int p_cpu_frequency(args_t ctx)
{
	struct cpu *cpu = this_cpu();

	if (cpu && (u32)ctx[1] == bpf_get_smp_processor_id())
		cpu->freq_khz = (u32)ctx[0];
	return 0;
}
