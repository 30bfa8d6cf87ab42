// The version of rapt. Semantic; CMake reads it from here.
#pragma once

#define RAPT_VERSION_MAJOR 0
#define RAPT_VERSION_MINOR 1
#define RAPT_VERSION_PATCH 0

namespace rapt {

inline constexpr int kVersionMajor = RAPT_VERSION_MAJOR;
inline constexpr int kVersionMinor = RAPT_VERSION_MINOR;
inline constexpr int kVersionPatch = RAPT_VERSION_PATCH;

}  // namespace rapt
