// Runs CUDA kernels on one CPU thread. Every thread of a thread block is a fiber, switched at
// barriers, shuffles and polls in an order drawn from a seed. Another seed changes the order of
// everything that no barrier or flag orders; a wait that never ends is reported. Numbers passed with
// a flag (store_handed, load_handed) obey the weakest memory order that CUDA's model allows: other
// thread blocks see a number only after its block's publish(), and only from their next acquire()
// on. All other memory is sequentially consistent. Any one barrier, fence or poll can be left out,
// to check that the result is wrong without it.
#pragma once

#define FASTSEQ_SIMULATED
#define __global__
#define __launch_bounds__(...)

#include <ucontext.h>

#include <array>
#include <csetjmp>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>
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

// The state that the scheduler reads from every fiber in every round. It is stored apart from the
// rest, because these reads take most of the time.
struct State {
    // Sleeps until *word >= target, or until not all of its `bytes` bytes have all bits set.
    const int* word = nullptr;
    int target = 0, bytes = 0;
    bool done = false;
    unsigned char laziness = 0;  // how often, out of 64 times that it could run, it rests

    bool rests() const {
        if (done || !word) return done;
        if (bytes == 0) return *word < target;
        return word[0] == -1 && word[bytes / 4 - 1] == -1;
    }
};

// Numbers passed between thread blocks, by address: those that a block wrote itself, and those that
// it has published to the others, in the order of publication.
struct Handed {
    double value;
    size_t bytes;
    bool said;
};
struct Said {
    long order;
    double value;
    size_t bytes;
};
inline std::unordered_map<const void*, std::vector<Said>> said;
inline long order;

struct Block {
    Index index, size;
    std::vector<Fiber> fibers;
    std::vector<State> states;
    std::vector<Barrier> warps;
    Barrier named[2];
    std::vector<char> slots;  // [warp][2][lane], 8 bytes each
    std::unique_ptr<double[]> shared;
    std::unordered_map<const void*, Handed> handed;
    long acquired = 0;  // it sees what was published up to here
    size_t running;

    void say_all() {
        ++order;
        for (auto& [address, number] : handed) {
            if (!number.said) said[address].push_back({order, number.value, number.bytes});
            number.said = true;
        }
    }
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

inline void sleep_until(const int* word, int target, int bytes = 0) {
    Fiber* self = current;
    State& state = self->block->states[self->index.x];
    state.word = word;
    state.target = target;
    state.bytes = bytes;
    if (!_setjmp(self->here)) _longjmp(scheduler, 1);
    state.word = nullptr;
}

inline void arrive(Barrier& barrier, int count) {
    if (++barrier.arrived == count) {
        barrier.arrived = 0;
        ++barrier.generation;
    }
    // The last one rests too, so that it is not always the first to continue.
    sleep_until(&barrier.generation, barrier.generation + (barrier.arrived ? 1 : 0));
}

// The places in the code where threads wait for each other, in the order of their first use.
inline std::map<std::pair<std::string, int>, int> places;
inline int left_out = -1;

inline bool leaves_out(const char* file, int line) {
    const auto found = places.try_emplace({file, line}, static_cast<int>(places.size()));
    return found.first->second == left_out;
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

// Addresses of the values of all lanes of the warp, valid until all lanes have continued.
template <class T>
std::array<const T*, 32> of_all_lanes(const T& mine) {
    std::array<const T*, 32> out;
    const T* address = &mine;
    const unsigned x = current->index.x, turn = current->shuffles++ % 2;
    char* slots = current->block->slots.data() + (x / 32 * 2 + turn) * 32 * 8;
    std::memcpy(slots + x % 32 * 8, &address, 8);
    arrive(warp(), 32);
    std::memcpy(out.data(), slots, 32 * 8);
    return out;
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

// Writes all published numbers to memory, at the end of a launch.
inline void settle() {
    for (const auto& [address, numbers] : said) {
        if (numbers.empty()) continue;
        if (numbers.back().bytes == sizeof(float)) {
            *static_cast<float*>(const_cast<void*>(address)) = static_cast<float>(numbers.back().value);
        } else {
            *static_cast<double*>(const_cast<void*>(address)) = numbers.back().value;
        }
    }
}

// Runs a grid with `resident` thread blocks at a time; returns false in a deadlock.
inline bool launch(unsigned blocks, unsigned threads, size_t shared, unsigned resident,
                   unsigned seed, std::function<void()> what) {
    kernel = std::move(what);
    said.clear();
    order = 0;
    std::mt19937 random(seed);
    std::vector<std::unique_ptr<Block>> running;
    unsigned started = 0;
    while (true) {
        while (started < blocks && running.size() < resident) {
            running.push_back(std::make_unique<Block>());
            start(*running.back(), started++, threads, shared, random);
        }
        if (running.empty()) {
            settle();
            return true;
        }
        bool moved = false;
        const size_t first = random() % running.size();
        for (size_t k = 0; k < running.size(); ++k) {
            Block& block = *running[(first + k) % running.size()];
            // Starts at a random thread; the others follow in order.
            const size_t size = block.fibers.size();
            size_t x = random() % size;
            for (size_t q = 0; q < size; ++q, x = x + 1 == size ? 0 : x + 1) {
                const State& state = block.states[x];
                if (state.rests()) continue;
                moved = true;  // if it rests now, it will move in a later round
                if (random() % 64 >= state.laziness) go_on(block.fibers[x]);
            }
        }
        if (!moved) return false;
        for (size_t k = running.size(); k-- > 0;) {
            if (running[k]->running > 0) continue;
            running[k]->say_all();
            running.erase(running.begin() + k);
        }
    }
}

}  // namespace fibers

#define threadIdx (fibers::current->index)
#define blockIdx (fibers::current->block->index)
#define blockDim (fibers::current->block->size)

#define FASTSEQ_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(FASTSEQ_PLACE) {
    fibers::Block& block = *fibers::current->block;
    if (fibers::leaves_out(file, line)) return;
    fibers::arrive(block.named[0], static_cast<int>(block.size.x));
}
template <class T>
T __shfl_sync(unsigned, T value, unsigned lane) {
    return fibers::exchange(value, lane);
}
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
void meet(FASTSEQ_PLACE) {
    if (!fibers::leaves_out(file, line)) fibers::arrive(fibers::current->block->named[id], count);
}

template <class T>
bool pending(T v, FASTSEQ_PLACE) {
    int words[sizeof(T) / 4];
    std::memcpy(words, &v, sizeof(T));
    return words[0] == -1 && words[sizeof(T) / 4 - 1] == -1 && !fibers::leaves_out(file, line);
}
template <class T>
T seal(T v) {
    return v == v ? v : std::numeric_limits<T>::quiet_NaN();
}
template <class T>
T load_now(const T* address) {
    return *address;
}
template <class T>
void store_now(T* address, T v) {
    *address = v;
}
template <class T>
void rest_until_there(const T* address, int&, int) {
    fibers::sleep_until(reinterpret_cast<const int*>(address), 0, sizeof(T));
}
inline void rest_until(const int* flag, int target, int&, int) {
    fibers::sleep_until(flag, target);
}
inline bool behind(const int* flag, int target, FASTSEQ_PLACE) {
    return *flag < target && !fibers::leaves_out(file, line);
}

inline void publish(int* flag, int value, FASTSEQ_PLACE) {
    if (!fibers::leaves_out(file, line)) fibers::current->block->say_all();
    *flag = value;
}
inline void acquire(const int*, FASTSEQ_PLACE) {
    if (!fibers::leaves_out(file, line)) fibers::current->block->acquired = fibers::order;
}
template <class T>
T load_handed(const T* address) {
    if constexpr (std::is_floating_point_v<T>) {
        const fibers::Block& block = *fibers::current->block;
        const auto own = block.handed.find(address);
        if (own != block.handed.end()) return static_cast<T>(own->second.value);
        T seen = *address;
        for (const fibers::Said& one : fibers::said[address]) {
            if (one.order <= block.acquired) seen = static_cast<T>(one.value);
        }
        return seen;
    } else {
        T quad;
        for (int k = 0; k < 4; ++k) quad.at[k] = load_handed(address->at + k);
        return quad;
    }
}
template <class T>
void store_handed(T* address, T v) {
    if constexpr (std::is_floating_point_v<T>) {
        fibers::current->block->handed[address] = {static_cast<double>(v), sizeof(T), false};
    } else {
        for (int k = 0; k < 4; ++k) store_handed(address->at + k, v.at[k]);
    }
}

}  // namespace soft_dtw
}  // namespace fastseq
