#include "tests/sim/whole/mutations.h"

namespace reprise::sim {
namespace {

constexpr std::string_view kCrash =
    "sim_crash_enumeration:CrashEnumeration.EveryRemovedBarrierIsCaught";
constexpr std::string_view kFencing = "sim_fencing:Fencing.EveryRemovedCheckIsCaught";

constexpr Mutation kMutations[] = {
    {"store.skip_payload_flush", [](Plan& plan) { plan.mutations.skip_payload_flush = true; }, 400,
     kCrash},
    {"store.prepared_before_flush", [](Plan& plan) { plan.mutations.prepared_before_flush = true; },
     400, kCrash},
    {"store.skip_prepared", [](Plan& plan) { plan.mutations.skip_prepared = true; }, 400, kCrash},
    {"store.skip_manifest_flush", [](Plan& plan) { plan.mutations.skip_manifest_flush = true; },
     400, kCrash},
    {"store.commit_without_all_sealed",
     [](Plan& plan) { plan.mutations.commit_without_all_sealed = true; },
     400,
     kCrash,
     {},
     true},
    {"store.ack_before_commit_durable",
     [](Plan& plan) { plan.mutations.ack_before_commit_durable = true; }, 400, kCrash},
    {"store.epoch_check_outside_lock",
     [](Plan& plan) { plan.mutations.epoch_check_outside_lock = true; }, 400, kFencing},
    {"store.skip_epoch_check",
     [](Plan& plan) { plan.mutations.skip_epoch_check = true; },
     400,
     kFencing,
     {},
     true},
    {"store.free_before_delete_durable",
     [](Plan& plan) { plan.mutations.free_before_delete_durable = true; }, 400, kCrash},
    {"store.ack_delete_early", [](Plan& plan) { plan.mutations.ack_delete_early = true; }, 400,
     kCrash},
    {"store.skip_root_check", [](Plan& plan) { plan.mutations.skip_root_check = true; }, 400,
     kCrash},
    {"store.skip_manifest_verify", [](Plan& plan) { plan.mutations.skip_manifest_verify = true; },
     400, kCrash},
    {"store.shards_keyed_by_step", [](Plan& plan) { plan.mutations.shards_keyed_by_step = true; },
     400, kFencing},
    {"store.fence_at_first_save", [](Plan& plan) { plan.mutations.fence_at_first_save = true; },
     400, kFencing},
    {"store.resume_without_settle", [](Plan& plan) { plan.mutations.resume_without_settle = true; },
     400, kCrash},
    {"store.resume_ignores_damage",
     [](Plan& plan) { plan.mutations.resume_ignores_damage = true; },
     400,
     {}},
    {"store.delete_ignores_pin",
     [](Plan& plan) { plan.mutations.delete_ignores_pin = true; },
     400,
     {}},
    {"store.delete_ignores_last_good",
     [](Plan& plan) { plan.mutations.delete_ignores_last_good = true; },
     400,
     {}},
    {"store.forget_prepared", [](Plan& plan) { plan.mutations.forget_prepared = true; }, 400, {}},
    {"journal.skip_second_copy", [](Plan& plan) { plan.journal_mutations.skip_second_copy = true; },
     400, kCrash},
    {"journal.ack_before_durable",
     [](Plan& plan) { plan.journal_mutations.ack_before_durable = true; }, 400, kCrash},
    {"journal.no_dsync", [](Plan& plan) { plan.journal_mutations.no_dsync = true; }, 400, kCrash},
    {"journal.skip_chain_check", [](Plan& plan) { plan.journal_mutations.skip_chain_check = true; },
     400, kCrash},
    {"journal.skip_repair", [](Plan& plan) { plan.journal_mutations.skip_repair = true; }, 400,
     kCrash},
    {"journal.truncate_at_rot", [](Plan& plan) { plan.journal_mutations.truncate_at_rot = true; },
     400, kCrash},
    {"tier.skip_flush",
     [](Plan& plan) { plan.tier_mutations.skip_flush = true; },
     400,
     kCrash,
     {},
     true},
    {"tier.trust_second_flush", [](Plan& plan) { plan.tier_mutations.trust_second_flush = true; },
     400, kCrash},
    {"tier.skip_creation_sync", [](Plan& plan) { plan.tier_mutations.skip_creation_sync = true; },
     400, kCrash},
    {"slab.reuse_uncommitted", [](Plan& plan) { plan.slab_mutations.reuse_uncommitted = true; },
     400},
    {"slab.discard_reused_slot", [](Plan& plan) { plan.slab_mutations.discard_reused_slot = true; },
     3000},
    {"slab.skip_companion", [](Plan& plan) { plan.slab_mutations.skip_companion = true; }, 400},
};

}  // namespace

std::span<const Mutation> Mutations() { return kMutations; }

const Mutation* FindMutation(std::string_view name) {
  for (const Mutation& mutation : kMutations) {
    if (mutation.name == name) return &mutation;
  }
  return nullptr;
}

}  // namespace reprise::sim
