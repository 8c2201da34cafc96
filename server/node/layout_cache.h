// LayoutCache: encoded layouts by digest, a few per connection. A process sends a layout once and
// names it by its digest afterwards; a restoring process asks for the same layouts for many ranks.
//
// Thread rule: a value with one owner.
#pragma once

#include <list>
#include <memory>

#include "core/base/digest.h"
#include "core/format/layout.h"

namespace reprise::node {

class LayoutCache {
 public:
  struct Entry {
    Digest digest;
    std::shared_ptr<const Bytes> encoded;
    std::shared_ptr<const format::Layout> decoded;  // null until a save needed it
  };

  // The entry, now the most recently used; null when it is not here (any more).
  Entry* Find(const Digest& digest) {
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->digest != digest) continue;
      entries_.splice(entries_.begin(), entries_, entry);
      return &entries_.front();
    }
    return nullptr;
  }
  // Adds or replaces; the least recently used goes.
  Entry* Add(Entry entry) {
    std::erase_if(entries_, [&](const Entry& old) { return old.digest == entry.digest; });
    entries_.push_front(std::move(entry));
    if (entries_.size() > kEntriesMax) entries_.pop_back();
    return &entries_.front();
  }

  static constexpr size_t kEntriesMax = 8;

 private:
  std::list<Entry> entries_;
};

}  // namespace reprise::node
