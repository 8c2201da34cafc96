/* c.h: the C interface of libreprise, the only ABI-stable surface. The Python package stands on it.
 *
 * Objects are opaque handles. Option structs begin with struct_size (set it to sizeof) so that later
 * versions may append fields. Functions return a reprise_code (0 is success, numbers of status.h);
 * reprise_error(handle) is the text of that handle's last failure, valid until its next call.
 *
 * Thread rule: a client may be used from any thread; a save, reader or listing from one at a time.
 * Blocking rule: only functions that take timeout_s block (and reprise_save_start, for as long as it
 * copies volatile pieces); timeout_s < 0 waits without limit. Nothing calls back into user code.
 * fork(): handles are dead in the child (every call returns REPRISE_FAILED_PRECONDITION there).
 */
#ifndef REPRISE_C_H_
#define REPRISE_C_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define REPRISE_API __attribute__((visibility("default")))
#else
#define REPRISE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t reprise_code; /* 0 OK, else the numbers of reprise::Code */
typedef struct reprise_client reprise_client;
typedef struct reprise_save reprise_save;
typedef struct reprise_reader reprise_reader;

REPRISE_API const char* reprise_version(void); /* "0.1.0" */
REPRISE_API const char* reprise_code_name(reprise_code code);

/* ---- client ------------------------------------------------------------------------------------ */

typedef struct {
  uint32_t struct_size;
  /* "reprise://TENANT/JOB" (a node daemon serves this host) or "file:///DIR" (embedded: the first
   * process of this host and directory starts a private daemon; job name is DIR's last component). */
  const char* uri;
  uint32_t rank;
  uint32_t world;
  const char* launcher; /* equal in all ranks of one launch; NULL: derived from the environment */
  const char* socket; /* the daemon's Unix socket; NULL: REPRISE_SOCKET or /run/reprise/node.sock */
  const char* daemon; /* path of `reprised` for embedded mode; NULL: beside libreprise, then PATH */
  int32_t takeover;   /* fence a live run of this job under another launcher */
  uint32_t copy_threads; /* 0: chosen */
  double connect_timeout_s;
  /* After this long without progress of the daemon a copy in progress is given up (training goes on). */
  double stall_budget_s;
} reprise_options;

/* Connects. Does not register a run: a client that only reads never fences anyone. On failure *client
 * still holds a handle whose only use is reprise_error and reprise_close. */
REPRISE_API reprise_code reprise_open(const reprise_options* options, reprise_client** client);
REPRISE_API const char* reprise_error(const reprise_client* client);
/* Waits up to timeout_s for saves in flight to reach the durability they asked for, then disconnects
 * and frees the handle. Not OK when one did not: the code and text of the first (the text is copied to
 * error_text when given). The daemon goes on draining what is sealed either way. */
REPRISE_API reprise_code reprise_close(reprise_client* client, double timeout_s, char* error_text,
                                       size_t error_size);

typedef struct {
  uint32_t struct_size;
  int32_t has_checkpoint; /* 0: the job never committed anything: start from scratch */
  uint64_t epoch;         /* of this run */
  uint64_t resume_epoch;  /* of the checkpoint to resume from */
  uint64_t resume_step;
  const char*
      skipped; /* newer checkpoints that could not be used, and why; "" if none; client-owned */
} reprise_run;

/* Registers this rank in a new run and waits until all ranks have: every rank gets the same answer. */
REPRISE_API reprise_code reprise_register(reprise_client* client, double timeout_s,
                                          reprise_run* run);

/* ---- saving ------------------------------------------------------------------------------------ */

enum {                             /* reprise_piece.flags */
       REPRISE_PIECE_AUX = 1,      /* an encoded value, not a tensor */
       REPRISE_PIECE_VOLATILE = 2, /* copied before reprise_save_start returns */
       REPRISE_PIECE_FLAT = 4      /* elements [flat_begin, flat_end) instead of boxes */
};

/* What a rank contributes of one tensor. `data` points to the piece's bytes, contiguous: box after
 * box in row-major order. It must stay valid and unchanged until the save is copied, unless volatile. */
typedef struct {
  uint32_t struct_size;
  uint8_t dtype;        /* reprise::Dtype */
  uint8_t scope;        /* reprise::Scope */
  uint8_t world_policy; /* reprise::WorldPolicy */
  uint8_t flags;
  const char* name;
  uint32_t ndim;
  uint32_t box_count;
  const uint64_t* global_shape; /* ndim */
  const uint64_t* boxes;        /* box_count x (ndim offsets, ndim extents) */
  uint64_t flat_begin;
  uint64_t flat_end;
  void* data;
  uint64_t data_bytes;
  int32_t source_rank; /* reading rank-scoped items: whose (-1: own rank) */
} reprise_piece;

typedef struct {
  uint32_t struct_size;
  const char* metadata; /* JSON object or NULL */
  uint8_t durability;   /* what close() and reprise_save_done wait for (reprise::Durability) */
  uint32_t keep_last;   /* checkpoints that stay when this one commits (reprise::Keep); 0: all */
  uint64_t keep_every;  /* and multiples of this step; needs keep_last; 0: no others */
} reprise_save_options;

/* Takes a snapshot of `pieces` as step `step`: copies volatile pieces, hands the rest to the copy
 * thread, returns at once. RESOURCE_EXHAUSTED: no slot is free yet (this step is skipped job-wide);
 * FENCED: a newer run exists. An attempt that fails later is told by wait and state. */
REPRISE_API reprise_code reprise_save_start(reprise_client* client, uint64_t step,
                                            const reprise_piece* pieces, size_t piece_count,
                                            const reprise_save_options* options,
                                            reprise_save** save);
/* Blocks until no piece of the caller's memory will be read any more. After DEADLINE_EXCEEDED or any
 * other failure the save is aborted and the memory is not read any more either. */
REPRISE_API reprise_code reprise_save_wait_copied(reprise_save* save, double timeout_s);
/* Blocks until the save reached `durability` for the whole job. */
REPRISE_API reprise_code reprise_save_wait(reprise_save* save, uint8_t durability,
                                           double timeout_s);
/* The caller found its memory changed before it was copied: abort for all ranks, naming why. */
REPRISE_API void reprise_save_abort(reprise_save* save, const char* reason);
REPRISE_API const char* reprise_save_error(const reprise_save* save);

typedef struct {
  uint32_t struct_size;
  uint8_t phase; /* 0 starting, then reprise::wire::SavePhase numbers 1..5 */
  reprise_code code;
  uint64_t step;
  uint64_t bytes;
  double start_ms;     /* time inside reprise_save_start */
  double copied_ms;    /* from the call to the end of copying; < 0 not yet */
  double local_ms;     /* ... to local seal of all ranks */
  double committed_ms; /* ... to commit */
} reprise_save_state;
REPRISE_API void reprise_save_get_state(const reprise_save* save, reprise_save_state* state);
/* Frees the handle; the save goes on. */
REPRISE_API void reprise_save_release(reprise_save* save);
/* This rank cannot take part in `step`: aborts it for all ranks. */
REPRISE_API reprise_code reprise_skip(reprise_client* client, uint64_t step, const char* reason);

/* ---- reading ----------------------------------------------------------------------------------- */

/* Opens a checkpoint: step < 0 means latest (or the run's pinned resume point when the client has
 * registered); epoch < 0 means along the lineage. Never registers. NOT_FOUND, DATA_LOSS. */
REPRISE_API reprise_code reprise_reader_open(reprise_client* client, int64_t step, int64_t epoch,
                                             double timeout_s, reprise_reader** reader);
/* What is in it, as JSON, owned by the reader: {"step","epoch","world","metadata","items":[{"name",
 * "dtype","shape","scope","aux","policy","ranks":[...],"bytes"}]};
 * rank-scoped items also "sizes", "shapes" and "dtypes", one for each of "ranks". */
REPRISE_API const char* reprise_reader_items(const reprise_reader* reader);
/* Fills the memory of `targets` (data is written) from the saved pieces, whatever world saved them.
 * Checks everything before a byte moves: NOT_FOUND and INVALID_ARGUMENT list what is missing or does
 * not match. DATA_LOSS: no intact copy. After a failure beyond those the targets are undefined. */
REPRISE_API reprise_code reprise_reader_read(reprise_reader* reader, const reprise_piece* targets,
                                             size_t target_count, double timeout_s);
typedef struct {
  uint32_t struct_size;
  uint64_t bytes_slab, bytes_peer, bytes_ram, bytes_nvme, bytes_object;
  uint64_t chunks_corrupt;
  double plan_ms, read_ms;
} reprise_read_stats;
/* Sums over all reads of this reader. */
REPRISE_API void reprise_reader_get_stats(const reprise_reader* reader, reprise_read_stats* stats);
REPRISE_API const char* reprise_reader_error(const reprise_reader* reader);
REPRISE_API void reprise_reader_close(reprise_reader* reader);

#ifdef __cplusplus
}
#endif

#endif /* REPRISE_C_H_ */
