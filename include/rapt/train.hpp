// Everything about training: tokenizers learned from text, batches, optimiser, checkpoints, the
// loop.
//
// Needs what <rapt/text.hpp> needs (CMake target rapt::text).
#pragma once

#include "rapt/train/bpe_trainer.hpp"
#include "rapt/train/checkpoint.hpp"
#include "rapt/train/dataset.hpp"
#include "rapt/train/log.hpp"
#include "rapt/train/loss_scaler.hpp"
#include "rapt/train/optimizer.hpp"
#include "rapt/train/schedule.hpp"
#include "rapt/train/token_file.hpp"
#include "rapt/train/trainer.hpp"
