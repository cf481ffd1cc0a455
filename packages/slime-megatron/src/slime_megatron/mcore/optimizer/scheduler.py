"""The schedule of learning rate and weight decay, counted in samples."""

from typing import Any

from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler


def scheduler_of(args: Any, optimizer: Any) -> OptimizerParamScheduler:
    """The schedule Megatron's flags describe; one iteration is ``--global-batch-size`` samples."""
    if args.train_iters:
        batch = args.global_batch_size
        decay = (args.lr_decay_iters or args.train_iters) * batch
        warmup, total = args.lr_warmup_iters * batch, args.train_iters * batch
        wsd = None if args.lr_wsd_decay_iters is None else args.lr_wsd_decay_iters * batch
    else:
        total = args.train_samples or 1
        decay, warmup = args.lr_decay_samples or total, args.lr_warmup_samples
        wsd = args.lr_wsd_decay_samples
    if args.lr_warmup_fraction is not None:
        warmup = args.lr_warmup_fraction * decay
    return OptimizerParamScheduler(
        optimizer,
        init_lr=args.lr_warmup_init,
        max_lr=args.lr,
        min_lr=args.min_lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=decay,
        lr_decay_style=args.lr_decay_style,
        start_wd=args.start_weight_decay,
        end_wd=args.end_weight_decay,
        wd_incr_steps=total,
        wd_incr_style=args.weight_decay_incr_style,
        use_checkpoint_opt_param_scheduler=args.use_checkpoint_opt_param_scheduler,
        override_opt_param_scheduler=args.override_opt_param_scheduler,
        wsd_decay_steps=wsd,
        lr_wsd_decay_style=args.lr_wsd_decay_style,
    )
