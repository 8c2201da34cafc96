// A translation unit without code, for targets that consist of something else: the libraries that
// own precompiled headers, and libreprise.so.
