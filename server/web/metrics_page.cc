#include "server/web/metrics_page.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

namespace reprise::web {
namespace {

using Labels = std::vector<prometheus::ClientMetric::Label>;

// Families in the order they were added, filled by the lines that follow each.
class Page {
 public:
  void Family(std::string_view name, std::string_view type, std::string_view help) {
    prometheus::MetricFamily family;
    family.name = name;
    family.help = help;
    family.type =
        type == "counter" ? prometheus::MetricType::Counter : prometheus::MetricType::Gauge;
    families_.push_back(std::move(family));
  }
  void Value(Labels labels, double value) {
    prometheus::ClientMetric metric;
    metric.label = std::move(labels);
    metric.counter.value = value;
    metric.gauge.value = value;
    families_.back().metric.push_back(std::move(metric));
  }
  void Single(std::string_view name, std::string_view type, std::string_view help, uint64_t value) {
    Family(name, type, help);
    Value({}, static_cast<double>(value));
  }
  std::string Take() const {
    std::ostringstream out;
    prometheus::TextSerializer().Serialize(out, families_);
    return out.str();
  }

 private:
  std::vector<prometheus::MetricFamily> families_;
};

void AddStore(Page& page, const MetricsSnapshot& s) {
  page.Family("reprise_tier_capacity_bytes", "gauge", "Bytes a tier may hold.");
  page.Value({{"tier", "nvme"}}, static_cast<double>(s.tier_capacity_bytes));
  page.Family("reprise_tier_used_bytes", "gauge", "Bytes a tier holds or has reserved.");
  page.Value({{"tier", "nvme"}}, static_cast<double>(s.tier_used_bytes));
  page.Family("reprise_tier_suspect_bytes", "gauge",
              "Bytes in segments that failed a write or a flush; nothing new is placed there.");
  page.Value({{"tier", "nvme"}}, static_cast<double>(s.tier_suspect_bytes));
  page.Single("reprise_data_received_bytes_total", "counter", "Chunk bytes received.",
              s.data_received_bytes);
  page.Single("reprise_data_sent_bytes_total", "counter", "Chunk bytes sent.", s.data_sent_bytes);
  page.Single("reprise_data_connections", "gauge", "Open data-plane connections.", s.connections);
  page.Family("reprise_last_committed_step", "gauge", "Step of the newest committed checkpoint.");
  for (const JobMetrics& job : s.jobs) {
    page.Value({{"job", job.job}}, static_cast<double>(job.last_committed_step));
  }
  page.Family("reprise_last_commit_timestamp_seconds", "gauge",
              "When the newest committed checkpoint was saved (Unix time).");
  for (const JobMetrics& job : s.jobs) {
    page.Value({{"job", job.job}, {"tier", "nvme"}}, job.last_commit_timestamp_seconds);
  }
  page.Family("reprise_checkpoints", "gauge", "Committed checkpoints kept.");
  for (const JobMetrics& job : s.jobs) {
    page.Value({{"job", job.job}}, static_cast<double>(job.checkpoints));
  }
}

void AddNode(Page& page, const MetricsSnapshot& s) {
  page.Family("reprise_slab_bytes", "gauge", "Slab memory: in use, and the budget.");
  page.Value({{"state", "used"}}, static_cast<double>(s.slab_used_bytes));
  page.Value({{"state", "budget"}}, static_cast<double>(s.slab_budget_bytes));
  page.Single("reprise_node_clients", "gauge", "Training processes attached.", s.clients);
  page.Single("reprise_uploads_pending", "gauge", "Shards on their way to a store.",
              s.uploads_pending);
  page.Single("reprise_uploaded_bytes_total", "counter", "Chunk bytes sent to stores.",
              s.uploaded_bytes);
  page.Family("reprise_restore_bytes_total", "counter", "Bytes given back to training processes.");
  page.Value({{"tier", "slab"}}, static_cast<double>(s.restored_slab_bytes));
  page.Value({{"tier", "nvme"}}, static_cast<double>(s.restored_store_bytes));
}

}  // namespace

std::string RenderMetrics(const MetricsSnapshot& snapshot) {
  Page page;
  page.Family("reprise_build_info", "gauge", "Version and role of this daemon.");
  page.Value({{"version", snapshot.version}, {"role", snapshot.role}}, 1);
  page.Family("reprise_io_backend_info", "gauge", "I/O engine in use, and why.");
  page.Value({{"backend", snapshot.io_engine}, {"reason", snapshot.io_reason}}, 1);
  page.Family("reprise_chunk_corrupt_total", "counter", "Chunks that failed their digest.");
  if (snapshot.has_store) {
    page.Value({{"tier", "nvme"}}, static_cast<double>(snapshot.store_chunks_corrupt));
  }
  if (snapshot.has_node) {
    page.Value({{"tier", "slab"}}, static_cast<double>(snapshot.node_chunks_corrupt));
  }
  if (snapshot.has_store) AddStore(page, snapshot);
  if (snapshot.has_node) AddNode(page, snapshot);
  return page.Take();
}

}  // namespace reprise::web
