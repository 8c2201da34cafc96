// REPRISE_EXPORT marks what libreprise.so shows of the C++ API; everything else is hidden.
// The linker script client/exports.map says the same once more.
//
// Thread rule: a macro.
#pragma once

#if defined(__GNUC__)
#define REPRISE_EXPORT __attribute__((visibility("default")))
#else
#define REPRISE_EXPORT
#endif
