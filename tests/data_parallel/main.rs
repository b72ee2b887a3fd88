//! One model on all ranks: its gradients are those of one rank on the whole batch.

#[path = "../common/mod.rs"]
mod common;

mod gradients;
mod kinds;
mod memory;
mod models;
mod passes;
mod refusals;
mod tapes;
mod unused;

use std::process::ExitCode;

use common::start;

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            gradients::are_those_of_the_whole_batch,
            gradients::are_equal_bit_for_bit,
            gradients::of_a_convolutional_net_in_a_store,
            gradients::of_shared_parameters,
            gradients::that_are_sparse,
            gradients::that_are_clipped_and_stepped,
            gradients::zeroed_in_each_way,
            gradients::lie_in_buckets,
            gradients::of_two_models_on_one_communicator,
            gradients::in_many_steps,
            kinds::half_and_bfloat16,
            kinds::a_loss_of_16_bits,
            kinds::reduced_in_another_kind,
            kinds::of_mixed_and_complex_parameters,
            kinds::that_change,
            unused::on_some_ranks,
            unused::on_all_ranks,
            unused::frozen_and_thawed,
            unused::loaded,
            passes::several_into_one_step,
            passes::gradients_that_share_memory,
            passes::without_a_batch,
            passes::weighted,
            passes::that_are_not_its_own,
            passes::nested_in_its_own,
            passes::nested_after_others,
            passes::that_fail_on_one_rank,
            passes::after_it_was_dropped,
            passes::that_communicate_without_a_tape,
            tapes::tensor_parallel,
            tapes::that_refuse,
            memory::of_cotangents_that_others_read,
            memory::of_steps_before,
            memory::of_any_layout,
            memory::of_a_graph,
            memory::of_large_parameters,
            memory::of_many_steps,
            refusals::options,
            refusals::models,
            refusals::models_that_differ,
            refusals::losses,
            refusals::weights,
            refusals::frozen_on_one_rank,
            refusals::changed_on_one_rank,
            refusals::other_calls,
            refusals::within_its_own_pass,
        ],
    )
}
