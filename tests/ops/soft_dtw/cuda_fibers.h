// Runs CUDA kernels on one CPU thread: every thread of a thread block is a fiber, switched at
// barriers, shuffles and flags in an order drawn from a seed. What is not ordered by a barrier or a
// flag comes in another order with another seed; a wait that never ends is reported. Memory is
// sequentially consistent here, so missing fences do not show.
#pragma once

#define FASTSEQ_SIMULATED
#define __global__
#define __launch_bounds__(...)

#include <ucontext.h>

#include <csetjmp>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

namespace fibers {

struct Index {
    unsigned x;
};

struct Barrier {
    int arrived = 0, generation = 0;
};

struct Block;

struct Fiber {
    ucontext_t begin;
    jmp_buf here;
    bool begun = false;
    std::unique_ptr<char[]> stack;
    Block* block;
    Index index;
    int shuffles = 0;
};

// What the scheduler asks of every fiber in every round, apart from all else: that is most of its
// time.
struct State {
    // Sleeps until *word >= target.
    const int* word = nullptr;
    int target = 0;
    bool done = false;
    unsigned char laziness = 0;  // of 64 times that it could go on it rests so often

    bool rests() const { return done || (word && *word < target); }
};

struct Block {
    Index index, size;
    std::vector<Fiber> fibers;
    std::vector<State> states;
    std::vector<Barrier> warps;
    Barrier named[2];
    std::vector<char> slots;  // [warp][2][lane], 8 bytes each
    std::unique_ptr<double[]> shared;
    size_t running;
};

inline Fiber* current;
inline jmp_buf scheduler;
inline std::function<void()> kernel;
constexpr size_t kStack = 64 * 1024;

// Jumps between stacks: swapcontext makes a system call each time, which takes 20 times as long.
inline void go_on(Fiber& fiber) {
    current = &fiber;
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.here, 1);
    fiber.begun = true;
    setcontext(&fiber.begin);
}

inline void sleep_until(const int* word, int target) {
    Fiber* self = current;
    State& state = self->block->states[self->index.x];
    state.word = word;
    state.target = target;
    if (!_setjmp(self->here)) _longjmp(scheduler, 1);
    state.word = nullptr;
}

inline void arrive(Barrier& barrier, int count) {
    if (++barrier.arrived == count) {
        barrier.arrived = 0;
        ++barrier.generation;
    }
    // The last one rests too, so that it is not always the first to go on.
    sleep_until(&barrier.generation, barrier.generation + (barrier.arrived ? 1 : 0));
}

inline Barrier& warp() { return current->block->warps[current->index.x / 32]; }

template <class T>
T exchange(T value, unsigned source) {
    static_assert(sizeof(T) <= 8);
    const unsigned x = current->index.x, turn = current->shuffles++ % 2;
    char* slots = current->block->slots.data() + (x / 32 * 2 + turn) * 32 * 8;
    std::memcpy(slots + x % 32 * 8, &value, sizeof(T));
    arrive(warp(), 32);
    if (source < 32) std::memcpy(&value, slots + source * 8, sizeof(T));
    return value;
}

inline void body() {
    kernel();
    current->block->states[current->index.x].done = true;
    --current->block->running;
    _longjmp(scheduler, 1);
}

inline void start(Block& block, unsigned index, unsigned threads, size_t shared,
                  std::mt19937& random) {
    block.index = {index};
    block.size = {threads};
    block.fibers.resize(threads);
    block.states.assign(threads, {});
    block.warps.assign(threads / 32, {});
    block.slots.assign(threads * 2 * 8, 0);
    block.shared.reset(new double[shared / 8 + 1]);
    std::memset(block.shared.get(), 0xff, shared);  // NaN
    block.running = threads;
    for (unsigned x = 0; x < threads; ++x) {
        Fiber& fiber = block.fibers[x];
        fiber.stack.reset(new char[kStack]);
        fiber.block = &block;
        fiber.index = {x};
        // Some warps, and some lanes, lag far behind the others.
        const bool same_warp = x % 32 != 0;
        unsigned char& laziness = block.states[x].laziness;
        laziness = same_warp ? block.states[x - x % 32].laziness : random() % 12 ? 4 : 63;
        if (random() % 2048 == 0) laziness = 63;
        getcontext(&fiber.begin);
        fiber.begin.uc_stack.ss_sp = fiber.stack.get();
        fiber.begin.uc_stack.ss_size = kStack;
        makecontext(&fiber.begin, body, 0);
    }
}

// Runs a grid with so many thread blocks at a time; false when all that run wait for ever.
inline bool launch(unsigned blocks, unsigned threads, size_t shared, unsigned resident,
                   unsigned seed, std::function<void()> what) {
    kernel = std::move(what);
    std::mt19937 random(seed);
    std::vector<std::unique_ptr<Block>> running;
    unsigned started = 0;
    while (true) {
        while (started < blocks && running.size() < resident) {
            running.push_back(std::make_unique<Block>());
            start(*running.back(), started++, threads, shared, random);
        }
        if (running.empty()) return true;
        bool moved = false;
        const size_t first = random() % running.size();
        for (size_t k = 0; k < running.size(); ++k) {
            Block& block = *running[(first + k) % running.size()];
            // Warps in an order of their own; lanes of a warp one after the other.
            const size_t size = block.fibers.size();
            size_t x = random() % size;
            for (size_t q = 0; q < size; ++q, x = x + 1 == size ? 0 : x + 1) {
                const State& state = block.states[x];
                if (state.rests()) continue;
                moved = true;  // if not now, it will
                if (random() % 64 >= state.laziness) go_on(block.fibers[x]);
            }
        }
        if (!moved) return false;
        for (size_t k = running.size(); k-- > 0;) {
            if (running[k]->running == 0) running.erase(running.begin() + k);
        }
    }
}

}  // namespace fibers

#define threadIdx (fibers::current->index)
#define blockIdx (fibers::current->block->index)
#define blockDim (fibers::current->block->size)

inline void __syncthreads() {
    fibers::Block& block = *fibers::current->block;
    fibers::arrive(block.named[0], static_cast<int>(block.size.x));
}
inline void __syncwarp() { fibers::arrive(fibers::warp(), 32); }
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned step) {
    return fibers::exchange(value, threadIdx.x % 32 - step);  // wraps around below lane 0
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned step) {
    return fibers::exchange(value, threadIdx.x % 32 + step);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, unsigned mask) {
    return fibers::exchange(value, (threadIdx.x % 32) ^ mask);
}
inline bool __any_sync(unsigned, bool value) {
    int votes = value;
    for (unsigned mask = 16; mask > 0; mask /= 2) votes |= __shfl_xor_sync(0u, votes, mask);
    return votes;
}
template <class T>
T __ldcg(const T* address) {
    return *address;
}
inline int atomicAdd(int* address, int value) {
    const int old = *address;
    *address += value;
    return old;
}

namespace fastseq {
namespace soft_dtw {

template <class T>
T& shared_memory() {
    return *reinterpret_cast<T*>(fibers::current->block->shared.get());
}
template <int id, int count>
void meet() {
    fibers::arrive(fibers::current->block->named[id], count);
}
inline void publish(int* p_flag, int value) {
    if (p_flag) *p_flag = value;
}
inline void wait_for(const int* p_flag, int value) {
    if (p_flag) fibers::sleep_until(p_flag, value);
}

}  // namespace soft_dtw
}  // namespace fastseq
