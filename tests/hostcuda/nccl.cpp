// NCCL between processes of one host, as far as CuPy's distributed backend needs it for sums and broadcasts.
//
// Ranks meet in shared memory that the unique id names. Each puts a part of its array into its own slot, all wait for
// each other, and each adds up the slots by itself, rank 0's first: so all get the same bits. As everywhere in the mock
// a stream has finished when a call returns, so a call waits until all ranks have made it. NCCL's own rule holds, too:
// every rank makes the same calls in the same order. Who breaks it, or comes with memory of the host, gets an error.
//
// A rank holds a lock on a byte of the shared memory for as long as it lives. The kernel lets go of it however the
// process ends, and so nobody waits for the dead.

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" int host_on_device(const void*);
extern "C" int host_capturing();
extern "C" void host_note(const char*);
extern "C" int cudaGetDevice(int*);

// Numbers as in nccl.h.
enum Result { FINE = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6 };
enum Type { INT8, UINT8, INT32, UINT32, INT64, UINT64, FLOAT16, FLOAT32, FLOAT64, TYPES };
enum Op { SUM, PROD, MAX, MIN, OPS };
static const size_t WIDTHS[TYPES] = {1, 1, 4, 4, 8, 8, 2, 4, 8};
struct UniqueId {
    char name[128];
};

static const int MOST_RANKS = 16;
static const size_t SLOT = 1 << 18;  // bytes that travel at once: they stay in a core's cache

struct Call {
    long what, type, op, root;
    size_t count;
};
struct Seat {
    std::atomic<long> turn;  // how often this rank has come to a meeting
    int device;
    Call call;  // what it asks for
};
struct Table {
    Seat seats[MOST_RANKS];
    char slots[MOST_RANKS][SLOT];
};
struct Comm {
    int rank, size, device, file;
    Table* table;
    long turn;
    int broken;  // the first error; there is no way back from it
};

static thread_local std::string last_error;

static int fail(Result result, const std::string& text) {
    last_error = text;
    return result;
}
EXPORT const char* ncclGetErrorString(int) {  // of the last call, which is the one asked about
    static thread_local std::string told;
    told = last_error.empty() ? "this call is not in the mock" : last_error;
    last_error.clear();
    return told.c_str();
}

// -- meeting ----------------------------------------------------------------------------------------------------------
static double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static bool lives(Comm* c, int rank) {
    struct flock asked = {};
    asked.l_type = F_WRLCK, asked.l_whence = SEEK_SET, asked.l_start = rank, asked.l_len = 1;
    return fcntl(c->file, F_GETLK, &asked) || asked.l_type != F_UNLCK;
}

// Wait until all ranks have come. It takes as long as the slowest needs, but not for ever.
static int meet(Comm* c) {
    const char* said = getenv("HOSTCUDA_PATIENCE");
    const double patience = said ? atof(said) : 120, began = seconds();
    c->table->seats[c->rank].turn.store(++c->turn);
    for (int r = 0; r < c->size; r++) {
        auto& turn = c->table->seats[r].turn;
        for (long tries = 0; turn.load() < c->turn; tries++) {
            if (tries < 1000) {
                sched_yield();
                continue;
            }
            usleep(100);
            const std::string who = "rank " + std::to_string(r);
            if (turn.load() && !lives(c, r) && turn.load() < c->turn)  // it may have come, and gone, meanwhile
                return c->broken = fail(REMOTE_ERROR, who + " has ended, and the others wait for it");
            if (seconds() - began > patience)
                return c->broken = fail(REMOTE_ERROR, who + " has not come for " + std::to_string((int)patience) + " s");
        }
    }
    return FINE;
}

// -- a communicator ---------------------------------------------------------------------------------------------------
EXPORT int ncclGetVersion(int* version) {
    *version = 22501;  // for which CuPy's wheel was built
    return FINE;
}
EXPORT int ncclGetUniqueId(UniqueId* id) {
    std::random_device random;
    memset(id, 0, sizeof *id);
    snprintf(id->name, sizeof id->name, "/hostcuda-nccl-%d-%08x", getpid(), random());
    return FINE;
}

EXPORT int ncclCommDestroy(Comm* c) {
    munmap(c->table, sizeof(Table));
    close(c->file);  // and with it the lock
    delete c;
    return FINE;
}
EXPORT int ncclCommAbort(Comm* c) { return ncclCommDestroy(c); }

EXPORT int ncclCommInitRankConfig(Comm** made, int size, UniqueId id, int rank, void*) {
    if (size < 1 || size > MOST_RANKS || rank < 0 || rank >= size)
        return fail(INVALID_ARGUMENT, "the mock has room for ranks 0 to 15");
    const int file = shm_open(id.name, O_CREAT | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, sizeof(Table))) return fail(SYSTEM_ERROR, "no shared memory");
    void* table = mmap(nullptr, sizeof(Table), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (table == MAP_FAILED) return fail(SYSTEM_ERROR, "no shared memory");
    struct flock own = {};
    own.l_type = F_WRLCK, own.l_whence = SEEK_SET, own.l_start = rank, own.l_len = 1;
    Comm* c = new Comm{rank, size, 0, file, (Table*)table, 0, FINE};
    cudaGetDevice(&c->device);
    c->table->seats[rank].device = c->device;
    int result = fcntl(file, F_SETLK, &own) ? fail(INVALID_USAGE, "two processes have come as one rank") : meet(c);
    shm_unlink(id.name);  // all have it open now, or there was an error
    for (int r = 0; r < size && !result; r++)
        if (r != rank && c->table->seats[r].device == c->device)
            result = fail(INVALID_USAGE, "Duplicate GPU detected: two ranks are on device " + std::to_string(c->device));
    if (result)
        ncclCommDestroy(c);
    else
        *made = c;
    return result;
}
EXPORT int ncclCommCount(Comm* c, int* n) { return *n = c->size, FINE; }
EXPORT int ncclCommCuDevice(Comm* c, int* n) { return *n = c->device, FINE; }
EXPORT int ncclCommUserRank(Comm* c, int* n) { return *n = c->rank, FINE; }
EXPORT int ncclCommGetAsyncError(Comm* c, int* error) { return *error = c->broken, FINE; }

// A process has one communicator here, so that what a group holds together may be done at once.
EXPORT int ncclGroupStart() { return FINE; }
EXPORT int ncclGroupEnd() { return FINE; }

// -- collectives ------------------------------------------------------------------------------------------------------
template <class T>
static void combine(char* to, const char* from, size_t bytes, int op) {
    T* out = (T*)to;
    const T* in = (const T*)from;
    for (size_t i = 0; i < bytes / sizeof(T); i++)
        out[i] = op == SUM ? T(out[i] + in[i]) : op == PROD ? T(out[i] * in[i])
               : op == MAX ? std::max(out[i], in[i]) : std::min(out[i], in[i]);
}
static void (*const COMBINE[TYPES])(char*, const char*, size_t, int) = {
    combine<int8_t>, combine<uint8_t>, combine<int32_t>, combine<uint32_t>, combine<int64_t>,
    combine<uint64_t>, combine<_Float16>, combine<float>, combine<double>};

enum What { ALL_REDUCE, BROADCAST };

static int collective(Comm* c, const Call& call, const void* in, void* out) {
    if (c->broken) return fail(REMOTE_ERROR, "this communicator has failed before");
    if (call.type < 0 || call.type >= TYPES || call.op < 0 || call.op >= OPS || call.root < 0 || call.root >= c->size)
        return fail(INVALID_ARGUMENT, "a type, operation or rank that the mock does not have");
    if (host_capturing()) return fail(INVALID_USAGE, "the mock does not record sums in a graph");
    const bool gives = call.what == ALL_REDUCE || call.root == c->rank;
    if (call.count && ((gives && !host_on_device(in)) || !host_on_device(out)))
        return fail(INVALID_ARGUMENT, "a pointer to host memory came where device memory is needed");
    host_note(call.what == ALL_REDUCE ? "ncclAllReduce" : "ncclBroadcast");

    Table& table = *c->table;
    table.seats[c->rank].call = call;
    const size_t bytes = call.count * WIDTHS[call.type];
    size_t at = 0;
    do {
        const size_t part = std::min(SLOT, bytes - at);
        if (gives && part) memcpy(table.slots[c->rank], (const char*)in + at, part);
        if (int error = meet(c)) return error;
        for (int r = 0; r < c->size; r++)
            if (memcmp(&table.seats[r].call, &call, sizeof call))
                return c->broken = fail(INVALID_USAGE, "ranks have made different calls: order, size or type");
        char* to = (char*)out + at;
        if (part) memcpy(to, table.slots[call.root], part);
        for (int r = 1; r < c->size && call.what == ALL_REDUCE; r++)
            COMBINE[call.type](to, table.slots[r], part, (int)call.op);
        if (int error = meet(c)) return error;  // before anybody writes into a slot again
        at += part;
    } while (at < bytes);
    return FINE;
}

EXPORT int ncclAllReduce(const void* in, void* out, size_t count, int type, int op, Comm* c, void*) {
    return collective(c, {ALL_REDUCE, type, op, 0, count}, in, out);
}
EXPORT int ncclBroadcast(const void* in, void* out, size_t count, int type, int root, Comm* c, void*) {
    return collective(c, {BROADCAST, type, SUM, root, count}, in, out);
}
EXPORT int ncclBcast(void* buffer, size_t count, int type, int root, Comm* c, void* stream) {
    return ncclBroadcast(buffer, buffer, count, type, root, c, stream);
}
