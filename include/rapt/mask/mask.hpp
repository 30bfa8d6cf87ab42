// All masks: the concept, composition, and the ones that ship with rapt.
//
//   concept.hpp      AttentionMask, TileVerdict, classify, bind_call
//   compose.hpp      & | ~ and as_mask
//   positional.hpp   Full, Causal, SlidingWindow, ChunkedLocal, SinkTokens, PrefixLm, SameDocument
//   by_row.hpp       BlockSparse, DenseMask
//   block_mask.hpp   make_block_mask: tile verdicts for any mask, lambdas included
#pragma once

#include "rapt/mask/block_mask.hpp"
#include "rapt/mask/by_row.hpp"
#include "rapt/mask/compose.hpp"
#include "rapt/mask/concept.hpp"
#include "rapt/mask/positional.hpp"
