#include "client/restore/strided.h"

namespace reprise::client {

StridedCopy MakeStridedCopy(const Box& source, uint64_t source_begin, const Box& target,
                            uint64_t target_begin, const Box& overlap, uint64_t element_bytes) {
  StridedCopy copy{.source_begin = source_begin,
                   .target = 0,
                   .target_begin = target_begin,
                   .run_bytes = element_bytes,
                   .axes = {}};
  uint64_t source_stride = element_bytes;
  uint64_t target_stride = element_bytes;
  for (size_t a = overlap.extent.size(); a-- > 0;) {
    uint64_t count = overlap.extent[a];
    copy.source_begin += (overlap.offset[a] - source.offset[a]) * source_stride;
    copy.target_begin += (overlap.offset[a] - target.offset[a]) * target_stride;
    bool first = copy.axes.empty();
    if (count == 1) {
      // No digit of its own.
    } else if (first && source_stride == copy.run_bytes && target_stride == copy.run_bytes) {
      copy.run_bytes *= count;
    } else if (!first && source_stride == copy.axes.back().count * copy.axes.back().source_stride &&
               target_stride == copy.axes.back().count * copy.axes.back().target_stride) {
      copy.axes.back().count *= count;
    } else {
      copy.axes.push_back({count, source_stride, target_stride});
    }
    source_stride *= source.extent[a];
    target_stride *= target.extent[a];
  }
  std::ranges::reverse(copy.axes);
  return copy;
}

}  // namespace reprise::client
