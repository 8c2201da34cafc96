// The /metrics page: what the daemon counts, in Prometheus text form.
//
// A snapshot of the parts' own counters is taken per scrape, so nothing is counted twice and no part
// knows about Prometheus. Names and labels: docs/operations.md (prefix reprise_, base units, labels
// job, tier, phase, result, node; never step, path or rank).
//
// Thread rule: pure function of the snapshot.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace reprise::web {

struct JobMetrics {
  std::string job;  // TENANT/NAME
  uint64_t last_committed_step = 0;
  double last_commit_timestamp_seconds = 0;
  uint64_t checkpoints = 0;
  uint64_t epoch = 0;
};

struct MetricsSnapshot {
  std::string version;
  std::string role;
  std::string io_engine;
  std::string io_reason;
  bool has_store = false;
  uint64_t tier_capacity_bytes = 0;
  uint64_t tier_used_bytes = 0;
  uint64_t tier_suspect_bytes = 0;
  uint64_t data_received_bytes = 0;
  uint64_t data_sent_bytes = 0;
  uint64_t store_chunks_corrupt = 0;
  uint64_t connections = 0;
  std::vector<JobMetrics> jobs;
  bool has_node = false;
  uint64_t slab_used_bytes = 0;
  uint64_t slab_budget_bytes = 0;
  uint64_t clients = 0;
  uint64_t uploads_pending = 0;
  uint64_t uploaded_bytes = 0;
  uint64_t restored_slab_bytes = 0;
  uint64_t restored_store_bytes = 0;
  uint64_t node_chunks_corrupt = 0;
};

std::string RenderMetrics(const MetricsSnapshot& snapshot);

}  // namespace reprise::web
