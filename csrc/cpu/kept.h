// What a program keeps from call to call beside its bytes: a place for another form of a step's weight, filled when a plan
// first takes that form. One run of bytes: KeptPlace[steps], then the places at multiples of 64. Whoever holds the program
// owns it; one at a time may plan with it as its filler (Program::fills_kept), any number may run.
#pragma once
#include <atomic>

#include "program.h"

namespace qk {

struct KeptPlace {
  int64_t at = 0, bytes = 0;   // 0: the step has no other form
  int64_t weight_sum = 0;      // the largest sum of absolute weights of an output channel; 0: nobody has looked
  int64_t filled = 0;          // 1: once and for all

  int64_t load(int64_t KeptPlace::*field) { return std::atomic_ref<int64_t>(this->*field).load(std::memory_order_acquire); }
  void store(int64_t KeptPlace::*field, int64_t value) { std::atomic_ref<int64_t>(this->*field).store(value, std::memory_order_release); }
};

bool keeps_weights();          // unless QKERNELS_KEEP_WEIGHTS is 0; throws std::invalid_argument where it is neither 0 nor 1

int64_t kept_room(const Program& program);                // of it all; memory that is never touched where nothing is filled
void begin_kept(const Program& program, void* kept);      // with nothing filled
bool holds_kept(const Program& program, const void* kept, int64_t bytes);  // whether begin_kept has made them for this program
int64_t kept_bytes(const Program& program);               // of the places that hold something

}  // namespace qk
