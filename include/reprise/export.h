// REPRISE_EXPORT marks what libreprise.so shows of the C++ API; everything else is hidden.
#pragma once

#if defined(__GNUC__)
#define REPRISE_EXPORT __attribute__((visibility("default")))
#else
#define REPRISE_EXPORT
#endif
